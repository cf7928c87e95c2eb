/* Figures that can be touched. Plain JavaScript, no library, no request to any host.

   1. ctraceNumerics: the cut, its segments and the gradient of their strength, as `ctrace.cut` computes them.
      It refers to nothing outside itself, because a worker is made from its text.
   2. The shared component: payloads, photographs on canvas, colours of the static figures, speech for screen readers.
   3. The figures.

   A payload is JSON in the page; `ctrace.viz.touch` writes it. */

function ctraceNumerics() {
  "use strict";
  const NEIGHBOR = 7, FAINTEST = 2.5 * Math.log(2 ** -52); // as in ctrace.cut.affinity
  const BLOCK = 4, STARTS = 4, MAX_ITERATIONS = 300;

  // ---- small dense matrices: arrays of rows

  function zeros(rows, columns) {
    return Array.from({ length: rows }, () => new Float64Array(columns));
  }

  /* Eigenvalues, descending, and eigenvectors (columns) of a symmetric matrix: Householder, then implicit QL
     (Bowdler, Martin, Reinsch, Wilkinson 1968). */
  function symmetricEigen(A) {
    const n = A.length, V = A.map((row) => Float64Array.from(row));
    const d = new Float64Array(n), e = new Float64Array(n);
    for (let i = n - 1; i > 0; i--) {
      let scale = 0, h = 0;
      for (let k = 0; k < i; k++) scale += Math.abs(V[i][k]);
      if (i === 1 || scale === 0) {
        e[i] = V[i][i - 1];
      } else {
        const u = V[i];
        for (let k = 0; k < i; k++) { u[k] /= scale; h += u[k] * u[k]; }
        const f = u[i - 1], g = f > 0 ? -Math.sqrt(h) : Math.sqrt(h);
        e[i] = scale * g;
        h -= f * g;
        u[i - 1] = f - g;
        let sum = 0;
        for (let j = 0; j < i; j++) {
          V[j][i] = u[j] / h;
          let dot = 0;
          for (let k = 0; k <= j; k++) dot += V[j][k] * u[k];
          for (let k = j + 1; k < i; k++) dot += V[k][j] * u[k];
          e[j] = dot / h;
          sum += e[j] * u[j];
        }
        const half = sum / (h + h);
        for (let j = 0; j < i; j++) {
          const fj = u[j], gj = e[j] - half * fj, row = V[j];
          e[j] = gj;
          for (let k = 0; k <= j; k++) row[k] -= fj * e[k] + gj * u[k];
        }
      }
      d[i] = h;
    }
    d[0] = 0; e[0] = 0;
    for (let i = 0; i < n; i++) {
      if (d[i] !== 0) {
        for (let j = 0; j < i; j++) {
          let g = 0;
          for (let k = 0; k < i; k++) g += V[i][k] * V[k][j];
          for (let k = 0; k < i; k++) V[k][j] -= g * V[k][i];
        }
      }
      d[i] = V[i][i];
      V[i][i] = 1;
      for (let j = 0; j < i; j++) { V[j][i] = 0; V[i][j] = 0; }
    }
    const Q = zeros(n, n); // rows of Q are the eigenvectors: QL turns pairs of them
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) Q[j][i] = V[i][j];
    for (let i = 1; i < n; i++) e[i - 1] = e[i];
    e[n - 1] = 0;
    for (let l = 0; l < n; l++) {
      for (let turn = 0; turn < 60; turn++) {
        let m = l;
        for (; m < n - 1; m++) {
          const size = Math.abs(d[m]) + Math.abs(d[m + 1]);
          if (Math.abs(e[m]) <= 2 ** -52 * size) break;
        }
        if (m === l) break;
        let g = (d[l + 1] - d[l]) / (2 * e[l]), r = Math.hypot(g, 1);
        g = d[m] - d[l] + e[l] / (g + (g < 0 ? -r : r));
        let s = 1, c = 1, p = 0, i = m - 1;
        for (; i >= l; i--) {
          const f = s * e[i], b = c * e[i];
          r = Math.hypot(f, g);
          e[i + 1] = r;
          if (r === 0) { d[i + 1] -= p; e[m] = 0; break; }
          s = f / r; c = g / r;
          g = d[i + 1] - p;
          r = (d[i] - g) * s + 2 * c * b;
          p = s * r;
          d[i + 1] = g + p;
          g = c * r - b;
          const low = Q[i], high = Q[i + 1];
          for (let k = 0; k < n; k++) {
            const t = high[k];
            high[k] = s * low[k] + c * t;
            low[k] = c * low[k] - s * t;
          }
        }
        if (r === 0 && i >= l) continue;
        d[l] -= p; e[l] = g; e[m] = 0;
      }
    }
    const order = Array.from(d.keys()).sort((a, b) => d[b] - d[a]);
    return { values: order.map((i) => d[i]), vectors: order.map((i) => Q[i]) };
  }

  /* M = A diag(s) B^T of a small square matrix, by rotations of its columns (Hestenes 1958). A and B as columns. */
  function svd(M) {
    const k = M.length;
    const A = Array.from({ length: k }, (_, j) => Float64Array.from(M, (row) => row[j]));
    const B = Array.from({ length: k }, (_, j) => { const b = new Float64Array(k); b[j] = 1; return b; });
    for (let sweep = 0; sweep < 60; sweep++) {
      let turned = false;
      for (let p = 0; p < k - 1; p++) for (let q = p + 1; q < k; q++) {
        let a = 0, b = 0, c = 0;
        for (let i = 0; i < k; i++) { a += A[p][i] ** 2; b += A[q][i] ** 2; c += A[p][i] * A[q][i]; }
        if (Math.abs(c) <= 1e-16 * Math.sqrt(a * b)) continue;
        turned = true;
        const zeta = (b - a) / (2 * c), t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const cos = 1 / Math.hypot(1, t), sin = cos * t;
        for (const X of [A, B]) for (let i = 0; i < k; i++) {
          const x = X[p][i], y = X[q][i];
          X[p][i] = cos * x - sin * y;
          X[q][i] = sin * x + cos * y;
        }
      }
      if (!turned) break;
    }
    const s = A.map((column) => Math.hypot(...column)), most = Math.max(...s);
    const done = [];
    A.forEach((column, j) => {
      if (s[j] <= 1e-14 * most) { s[j] = 0; return; }
      for (let i = 0; i < k; i++) column[i] /= s[j];
      done.push(column);
    });
    A.forEach((column, j) => { // a column that is nothing: any direction that the others leave
      for (let e = 0; s[j] === 0 && !done.includes(column); e++) {
        column.fill(0); column[e] = 1;
        for (let twice = 0; twice < 2; twice++) done.forEach((other) => {
          let along = 0;
          for (let i = 0; i < k; i++) along += other[i] * column[i];
          for (let i = 0; i < k; i++) column[i] -= along * other[i];
        });
        const size = Math.hypot(...column);
        if (size < 0.5 / Math.sqrt(k)) continue;
        for (let i = 0; i < k; i++) column[i] /= size;
        done.push(column);
      }
    });
    return { A, s, B };
  }

  function polar(M) {
    const { A, s, B } = svd(M), k = M.length, R = zeros(k, k);
    for (let i = 0; i < k; i++) for (let j = 0; j < k; j++)
      for (let r = 0; r < k; r++) R[i][j] += A[r][i] * B[r][j];
    return { R, A, s, B };
  }

  // ---- the graph

  /* Squared distances (n, n) of rows x (n, c), kept as columns: x[c] has n values. */
  function squaredDistances(columns, n) {
    const active = columns.filter((column) => column.some((v) => v !== column[0])), c = active.length;
    const rows = new Float64Array(n * c), D = new Float64Array(n * n);
    active.forEach((column, j) => { for (let i = 0; i < n; i++) rows[i * c + j] = column[i]; });
    for (let i = 0; i < n; i++) {
      const a = i * c;
      let j = i + 1;
      for (; j + 1 < n; j += 2) {
        let s = 0, t = 0;
        for (let k = 0, b = j * c, d = b + c; k < c; k++) {
          const x = rows[a + k], u = x - rows[b + k], v = x - rows[d + k];
          s += u * u; t += v * v;
        }
        D[i * n + j] = s; D[i * n + j + 1] = t;
      }
      for (; j < n; j++) {
        let s = 0;
        for (let k = 0, b = j * c; k < c; k++) { const u = rows[a + k] - rows[b + k]; s += u * u; }
        D[i * n + j] = s;
      }
    }
    mirror(D, n);
    return D;
  }

  function mirror(D, n) {
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) D[j * n + i] = D[i * n + j];
  }

  /* The distances when some columns change; cheaper than anew when they are few. */
  function changedDistances(D, pairs, n) {
    const out = new Float64Array(n * n);
    for (let i = 0; i < n; i++) {
      const row = i * n;
      for (let j = i + 1; j < n; j++) out[row + j] = D[row + j];
      for (const [before, after] of pairs) {
        const x = before[i], y = after[i];
        for (let j = i + 1; j < n; j++) {
          const u = x - before[j], v = y - after[j];
          out[row + j] += v * v - u * u;
        }
      }
      for (let j = i + 1; j < n; j++) if (out[row + j] < 0) out[row + j] = 0;
    }
    mirror(out, n);
    return out;
  }

  /* Each point's scale: the distance to its 7th neighbour over sqrt(2), times `width`
     (Zelnik-Manor and Perona 2004). Copies without such a distance take the median of the others. */
  function localScales(D, n, width) {
    const sigma = new Float64Array(n), near = new Int32Array(n);
    const best = new Float64Array(NEIGHBOR + 1), at = new Int32Array(NEIGHBOR + 1);
    const last = Math.min(NEIGHBOR, n - 1);
    for (let i = 0; i < n; i++) {
      best.fill(Infinity);
      for (let j = 0; j < n; j++) {
        const v = D[i * n + j];
        if (v >= best[last]) continue;
        let p = last;
        for (; p > 0 && best[p - 1] > v; p--) { best[p] = best[p - 1]; at[p] = at[p - 1]; }
        best[p] = v; at[p] = j;
      }
      near[i] = at[last];
      sigma[i] = Math.sqrt(best[last] / 2) * width;
    }
    const positive = Array.from(sigma.keys()).filter((i) => sigma[i] > 0).sort((a, b) => sigma[a] - sigma[b]);
    if (!positive.length) throw new Error("all points are the same: there is nothing to cut");
    const middle = positive[(positive.length - 1) >> 1], own = Int32Array.from(sigma.keys());
    for (let i = 0; i < n; i++) if (!(sigma[i] > 0)) { sigma[i] = sigma[middle]; own[i] = middle; }
    return { sigma, near, own };
  }

  /* Local scales times `width`, or one bandwidth `fixed` for all points. */
  function buildGraph(D, n, width, fixed = 0) {
    const { sigma, near, own } = fixed > 0 ? { sigma: new Float64Array(n).fill(fixed) } : localScales(D, n, width);
    const S = new Float64Array(n * n), degree = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      S[i * n + i] = 1; degree[i] += 1;
      for (let j = i + 1; j < n; j++) {
        const w = Math.exp(Math.max(-D[i * n + j] / (2 * sigma[i] * sigma[j]), FAINTEST));
        S[i * n + j] = w;
        degree[i] += w; degree[j] += w;
      }
    }
    const root = degree.map((d) => 1 / Math.sqrt(d));
    for (let i = 0; i < n; i++) for (let j = i; j < n; j++) S[i * n + j] *= root[i] * root[j];
    mirror(S, n);
    return { n, S, D, sigma, near, own, degree, root, width };
  }

  /* S times `BLOCK` columns, which lie side by side. */
  function product(S, n, V, out) {
    let i = 0;
    for (; i + 1 < n; i += 2) {
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let j = 0, p = i * n, q = p + n, v = 0; j < n; j++, p++, q++, v += 4) {
        const s = S[p], t = S[q], v0 = V[v], v1 = V[v + 1], v2 = V[v + 2], v3 = V[v + 3];
        a0 += s * v0; a1 += s * v1; a2 += s * v2; a3 += s * v3;
        b0 += t * v0; b1 += t * v1; b2 += t * v2; b3 += t * v3;
      }
      const o = 4 * i;
      out[o] = a0; out[o + 1] = a1; out[o + 2] = a2; out[o + 3] = a3;
      out[o + 4] = b0; out[o + 5] = b1; out[o + 6] = b2; out[o + 7] = b3;
    }
    for (; i < n; i++) for (let c = 0; c < 4; c++) {
      let s = 0;
      for (let j = 0; j < n; j++) s += S[i * n + j] * V[4 * j + c];
      out[4 * i + c] = s;
    }
  }

  /* S times a list of columns. */
  function times(graph, columns) {
    const { n, S } = graph, out = [], V = new Float64Array(4 * n), W = new Float64Array(4 * n);
    for (let first = 0; first < columns.length; first += BLOCK) {
      const group = columns.slice(first, first + BLOCK);
      V.fill(0);
      group.forEach((column, c) => { for (let i = 0; i < n; i++) V[4 * i + c] = column[i]; });
      product(S, n, V, W);
      group.forEach((_, c) => {
        const column = new Float64Array(n);
        for (let i = 0; i < n; i++) column[i] = W[4 * i + c];
        out.push(column);
      });
    }
    return out;
  }

  function dot(a, b) {
    let s = 0;
    for (let i = 0; i < a.length; i++) s += a[i] * b[i];
    return s;
  }

  function add(to, factor, from) {
    for (let i = 0; i < to.length; i++) to[i] += factor * from[i];
  }

  function scale(a, factor) {
    for (let i = 0; i < a.length; i++) a[i] *= factor;
  }

  function randomColumn(n, state) {
    const column = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      state.seed = (Math.imul(state.seed, 1664525) + 1013904223) >>> 0;
      column[i] = state.seed / 2 ** 32 - 0.5;
    }
    return column;
  }

  /* Takes the parts along `basis` off a column, twice, and scales it; what it lost, and its length before. */
  function orthonormalise(column, basis, state) {
    const lost = new Float64Array(basis.length);
    const before = Math.sqrt(dot(column, column));
    for (let twice = 0; twice < 2; twice++) basis.forEach((q, i) => {
      const part = dot(q, column);
      lost[i] += part;
      add(column, -part, q);
    });
    let length = Math.sqrt(dot(column, column));
    if (!(length > 1e-12 * Math.max(before, 1e-300))) { // nothing left: a new direction
      const fresh = randomColumn(column.length, state);
      column.set(fresh);
      for (let twice = 0; twice < 3; twice++) basis.forEach((q) => add(column, -dot(q, column), q));
      scale(column, 1 / Math.sqrt(dot(column, column)));
      return { lost, length: 0 };
    }
    scale(column, 1 / length);
    return { lost, length };
  }

  /* The `wanted` leading eigenpairs of S to |S u - lam u| <= tolerance, and spare ones below them: block Lanczos with
     full orthogonalisation, about the known first vector sqrt(d). */
  function eigenpairs(graph, wanted, tolerance = 1e-8, spare = 40) {
    const { n } = graph, state = { seed: 12345 }, basis = [], T = [];
    const first = graph.degree.map(Math.sqrt);
    scale(first, 1 / Math.sqrt(dot(first, first)));
    const most = Math.min(n - 1, 480);
    let block = [], found = null;
    for (let c = 0; c < Math.min(BLOCK, most); c++) {
      const column = randomColumn(n, state);
      orthonormalise(column, [first, ...block], state);
      block.push(column);
    }
    let next = Math.min(most, 92);
    while (true) {
      const start = basis.length;
      basis.push(...block);
      const images = times(graph, block);
      for (let c = 0; c < block.length; c++) T.push(new Float64Array(most + 2 * BLOCK));
      images.forEach((image, c) => {
        add(image, -dot(first, image), first);
        for (let twice = 0; twice < 2; twice++) basis.forEach((q, i) => {
          const part = dot(q, image);
          if (i < start + block.length) { T[i][start + c] += part; }
          add(image, -part, q);
        });
      });
      for (let i = 0; i < block.length; i++) for (let j = 0; j < i; j++) { // symmetric but for rounding
        const mean = (T[start + i][start + j] + T[start + j][start + i]) / 2;
        T[start + i][start + j] = T[start + j][start + i] = mean;
      }
      for (let i = 0; i < start; i++) for (let c = 0; c < block.length; c++) T[start + c][i] = T[i][start + c];
      // the next block, and how the images are made of it
      const size = basis.length, room = Math.min(BLOCK, most - size), following = [];
      const rest = zeros(BLOCK, block.length);
      images.forEach((image, c) => {
        const lengthBefore = Math.sqrt(dot(image, image));
        following.forEach((q, i) => { const part = dot(q, image); rest[i][c] += part; add(image, -part, q); });
        if (following.length < Math.max(room, 1)) {
          const length = Math.sqrt(dot(image, image));
          if (length > 1e-13) { rest[following.length][c] = length; }
          const column = Float64Array.from(image), spoiled = length < 1e-6; // rounding, made large
          if (length > 1e-13) scale(column, 1 / length);
          orthonormalise(column, spoiled ? [first, ...basis, ...following] : [first, ...following], state);
          following.push(column);
        } else rest[BLOCK - 1][c] += lengthBefore;
      });
      if (size >= next || room <= 0) {
        const ritz = symmetricEigen(T.map((row) => row.slice(0, size)));
        const flaw = (vector) => {
          let sum = 0;
          for (let i = 0; i < BLOCK; i++) {
            let s = 0;
            for (let c = 0; c < block.length; c++) s += rest[i][c] * vector[start + c];
            sum += s * s;
          }
          return Math.sqrt(sum);
        };
        const flaws = ritz.vectors.slice(0, wanted + spare).map(flaw);
        const settled = flaws.slice(0, wanted - 1).every((f) => f <= tolerance);
        if (settled || room <= 0) {
          let keep = Math.min(flaws.length, size);
          while (keep > wanted - 1 && flaws[keep - 1] > 1e-2) keep--;
          found = { ritz, keep, flaws };
          break;
        }
        next = size + 4 * BLOCK;
      }
      block = following.slice(0, room);
    }
    const values = [1, ...found.ritz.values.slice(0, found.keep)], vectors = [first];
    for (let r = 0; r < found.keep; r++) {
      const vector = new Float64Array(n), y = found.ritz.vectors[r];
      basis.forEach((q, i) => { if (y[i] !== 0) add(vector, y[i], q); });
      vectors.push(vector);
    }
    return { values, vectors, dimension: basis.length + 1, flaw: Math.max(...found.flaws.slice(0, wanted - 1)) };
  }

  // ---- k-way segments (ctrace.cut.kway)

  function kway(vectors, k, n) {
    const Y = vectors.slice(0, k).map((u) => Float64Array.from(u)), length = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      let s = 0;
      for (let j = 0; j < k; j++) s += Y[j][i] ** 2;
      length[i] = Math.sqrt(s);
      for (let j = 0; j < k; j++) Y[j][i] /= length[i];
    }
    let best = null;
    for (const first of firstRows(Y, k, n)) {
      const found = alternate(Y, spreadRows(Y, first, k, n), k, n);
      if (best === null || found.value > best.value) best = found;
    }
    const assigned = bySize(best.assigned, k, n), M = meeting(Y, assigned, k, n), R = polar(M);
    const Z = Array.from({ length: k }, () => new Float64Array(n)), segments = new Int32Array(n);
    for (let j = 0; j < k; j++) for (let r = 0; r < k; r++) add(Z[j], R.R[r][j], vectors[r]);
    for (let i = 0; i < n; i++) for (let j = 1; j < k; j++) if (Z[j][i] > Z[segments[i]][i]) segments[i] = j;
    return { k, Y, length, assigned, polar: R, Z, segments };
  }

  function firstRows(Y, k, n) {
    const mean = Y.map((y) => y.reduce((a, b) => a + b, 0) / n), central = new Float64Array(n);
    for (let j = 0; j < k; j++) add(central, mean[j], Y[j]);
    const order = Array.from(central.keys()).sort((a, b) => central[a] - central[b]), rows = new Set();
    for (let s = 0; s < STARTS; s++) rows.add(order[Math.round(s * (n - 1) / (STARTS - 1))]);
    return Array.from(rows).sort((a, b) => a - b);
  }

  function spreadRows(Y, first, k, n) {
    const rows = [first], overlap = new Float64Array(n);
    while (rows.length < k) {
      const last = rows[rows.length - 1];
      let least = 0;
      for (let i = 0; i < n; i++) {
        let s = 0;
        for (let j = 0; j < k; j++) s += Y[j][i] * Y[j][last];
        overlap[i] += Math.abs(s);
        if (overlap[i] < overlap[least]) least = i;
      }
      rows.push(least);
    }
    return polar(Y.map((y) => Float64Array.from(rows, (i) => y[i]))).R;
  }

  function meeting(Y, assigned, k, n) {
    const M = zeros(k, k);
    for (let j = 0; j < k; j++) for (let i = 0; i < n; i++) M[j][assigned[i]] += Y[j][i];
    return M;
  }

  function alternate(Y, R, k, n) {
    const rows = new Float64Array(n * k), score = new Float64Array(k);
    Y.forEach((y, j) => { for (let i = 0; i < n; i++) rows[i * k + j] = y[i]; });
    let before = -Infinity, value = 0, assigned = null;
    for (let turn = 0; turn < MAX_ITERATIONS; turn++) {
      const flat = new Float64Array(k * k), M = zeros(k, k);
      R.forEach((row, r) => flat.set(row, r * k));
      assigned = new Int32Array(n);
      for (let i = 0, at = 0; i < n; i++, at += k) {
        score.fill(0);
        for (let r = 0, q = 0; r < k; r++) {
          const y = rows[at + r];
          for (let j = 0; j < k; j++, q++) score[j] += y * flat[q];
        }
        let most = 0;
        for (let j = 1; j < k; j++) if (score[j] > score[most]) most = j;
        assigned[i] = most;
        for (let r = 0; r < k; r++) M[r][most] += rows[at + r];
      }
      const found = polar(M);
      R = found.R;
      value = found.s.reduce((a, b) => a + b, 0);
      if (value <= before * (1 + 2 ** -52)) break;
      before = value;
    }
    return { assigned, value };
  }

  function bySize(assigned, k, n) {
    const size = new Float64Array(k), first = new Float64Array(k).fill(n);
    assigned.forEach((j, i) => { size[j] += 1; first[j] = Math.min(first[j], i); });
    const order = Array.from(size.keys()).sort((a, b) => size[b] * (n + 1) - first[b] - size[a] * (n + 1) + first[a]);
    const rank = new Int32Array(k);
    order.forEach((j, place) => { rank[j] = place; });
    return assigned.map((j) => rank[j]);
  }

  // ---- strength and its gradient (ctrace.cut.tracing, ctrace.cut.eigenvectors)

  /* Associations: z^T W z / z^T D z with z = D^-1/2 Z, that is Z^T S Z, a mean of eigenvalues. */
  function strengths(cut, values) {
    const { R } = cut.polar;
    return Array.from({ length: cut.k }, (_, j) => {
      let s = 0;
      for (let r = 0; r < cut.k; r++) s += values[r] * R[r][j] ** 2;
      return s;
    });
  }

  /* The gradient of the strength of segment j with respect to the eigenvectors, as k columns. */
  function pull(cut, values, vectors, j) {
    const { k, polar: P, Y, length, assigned } = cut, n = length.length, strength = strengths(cut, values)[j];
    const g = zeros(k, k), turned = zeros(k, k), gM = zeros(k, k);
    for (let r = 0; r < k; r++) g[r][j] = 2 * (values[r] - strength) * P.R[r][j];
    for (let a = 0; a < k; a++) for (let b = 0; b < k; b++)
      for (let r = 0; r < k; r++) turned[a][b] += P.A[a][r] * g[r][j] * P.B[b][j];
    for (let a = 0; a < k; a++) for (let b = 0; b < k; b++) {
      if (a === b) continue;
      const t = (turned[a][b] - turned[b][a]) / (P.s[a] + P.s[b]);
      for (let r = 0; r < k; r++) for (let c = 0; c < k; c++) gM[r][c] += P.A[a][r] * t * P.B[b][c];
    }
    const out = Array.from({ length: k }, () => new Float64Array(n));
    for (let i = 0; i < n; i++) {
      let along = 0;
      for (let r = 0; r < k; r++) along += gM[r][assigned[i]] * Y[r][i];
      for (let r = 0; r < k; r++) out[r][i] = (gM[r][assigned[i]] - along * Y[r][i]) / length[i];
    }
    return out;
  }

  /* Solves (lam_j - S) v_j = g_j outside the first k eigenvectors: conjugate gradients, with the spare
     eigenpairs taken out of the way. */
  function solveOutside(graph, pairs, k, right, tolerance = 1e-7) {
    const { values, vectors } = pairs, inner = vectors.slice(0, k), spare = vectors.slice(k), n = graph.n;
    const outside = (v) => { for (let t = 0; t < 2; t++) inner.forEach((u) => add(v, -dot(u, v), u)); return v; };
    const gains = right.map((_, j) => spare.map((_, e) => 1 / Math.max(values[j] - values[k + e], 1e-13) - 1));
    const easier = (v, j) => {
      const out = Float64Array.from(v);
      spare.forEach((u, e) => add(out, gains[j][e] * dot(u, v), u));
      return outside(out);
    };
    right = right.map((g) => outside(Float64Array.from(g)));
    const x = right.map(() => new Float64Array(n)), r = right.map((g) => Float64Array.from(g));
    const z = r.map(easier), p = z.map((v) => Float64Array.from(v));
    const goal = right.map((g) => tolerance * Math.sqrt(dot(g, g))), rz = r.map((v, j) => dot(v, z[j]));
    let open = right.map((_, j) => j).filter((j) => goal[j] > 1e-300 && Math.sqrt(dot(r[j], r[j])) > goal[j]);
    for (let step = 0; step < 300 && open.length; step++) {
      const images = times(graph, open.map((j) => p[j]));
      open.forEach((j, place) => {
        const q = images[place];
        for (let i = 0; i < n; i++) q[i] = values[j] * p[j][i] - q[i];
        outside(q);
        const alpha = rz[j] / dot(p[j], q);
        add(x[j], alpha, p[j]);
        add(r[j], -alpha, q);
        z[j] = easier(r[j], j);
        const fresh = dot(r[j], z[j]), beta = fresh / rz[j];
        rz[j] = fresh;
        for (let i = 0; i < n; i++) p[j][i] = z[j][i] + beta * p[j][i];
      });
      open = open.filter((j) => Math.sqrt(dot(r[j], r[j])) > goal[j]);
    }
    return x;
  }

  /* Attributions of segment j, one per column of features: the mean gradient of its strength over its points. */
  function attributions(graph, pairs, cut, j, columns) {
    const { n, S, D, sigma, near, own, degree, root, width } = graph, { k, segments } = cut;
    const { values, vectors } = pairs, inside = segments.map((s) => (s === j ? 1 : 0));
    const size = inside.reduce((a, b) => a + b, 0);
    if (!size || cut.polar.s.filter((s) => s <= 1e-6).length > 1) return null;
    const V = solveOutside(graph, pairs, k, pull(cut, values, vectors, j));
    const SV = times(graph, V), U = vectors.slice(0, k), Z = cut.Z[j], [SZ] = times(graph, [Z]);
    const both = new Float64Array(n), z = new Float64Array(n);
    for (let i = 0; i < n; i++) {
      z[i] = Z[i] * root[i];
      let s = -SZ[i] * Z[i] / degree[i];
      for (let r = 0; r < k; r++) s -= (V[r][i] * values[r] * U[r][i] + U[r][i] * SV[r][i]) / (2 * degree[i]);
      both[i] = s / 2;
    }
    const b = new Float64Array(n * k), u = new Float64Array(n * k);
    for (let i = 0; i < n; i++) for (let r = 0; r < k; r++) {
      b[i * k + r] = V[r][i] * root[i] / 2; u[i * k + r] = U[r][i] * root[i];
    }
    const slope = new Float64Array(n), on = new Float64Array(n);
    for (let i = 0; i < n; i++) for (let l = i + 1; l < n; l++) {
      let G = z[i] * z[l] + both[i] + both[l];
      for (let r = 0, p = i * k, q = l * k; r < k; r++, p++, q++) G += b[p] * u[q] + u[p] * b[q];
      const d = D[i * n + l], P = G * S[i * n + l] / (root[i] * root[l] * sigma[i] * sigma[l]);
      slope[i] += P * d; slope[l] += P * d;
      if (inside[i] !== inside[l]) { on[i] += inside[i] ? P : -P; on[l] += inside[l] ? P : -P; }
    }
    for (let i = 0; i < n; i++) on[i] *= -2;
    for (let i = 0; i < n; i++) { // sigma_i is a distance to a neighbour, and moves with both
      const at = own[i], to = near[at], part = slope[i] / sigma[i] * width * width / (2 * sigma[at]);
      const turn = part * (inside[at] - inside[to]);
      on[at] += turn; on[to] -= turn;
    }
    return columns.map((column) => dot(on, column) / size);
  }

  /* How much of a segment is left in another cut: its largest intersection over union, and with which. */
  function bestOverlap(mask, segments, k) {
    const both = new Float64Array(k), either = new Float64Array(k);
    let size = 0;
    mask.forEach((m, i) => { size += m; either[segments[i]] += 1; both[segments[i]] += m; });
    let best = { share: 0, segment: 0 };
    for (let j = 0; j < k; j++) {
      const share = both[j] / (size + either[j] - both[j]);
      if (either[j] && share > best.share) best = { share, segment: j };
    }
    return best;
  }

  // ---- a desk: features stay here, cuts are asked for

  /* Features as columns, and what was computed of them: the same question is answered once. */
  function desk(columns, n, pairsWanted) {
    const base = { columns, D: null }, state = {};
    const mean = columns.map((column) => column.reduce((a, b) => a + b, 0) / n);

    function distancesOf(wanted) {
      if (!base.D) base.D = squaredDistances(columns, n);
      const pairs = columns.map((column, c) => [column, wanted[c]]).filter(([a, b]) => a !== b);
      if (!pairs.length) return base.D;
      return pairs.length > columns.length / 3 ? squaredDistances(wanted, n) : changedDistances(base.D, pairs, n);
    }

    function weighted(weights) { // a channel of weight 0 is flat: its mean everywhere, which no distance sees
      return columns.map((column, c) => weights[c] === 1 ? column
        : weights[c] === 0 ? new Float64Array(n).fill(mean[c]) : column.map((v) => weights[c] * v));
    }

    function solve(wanted, width) {
      const graph = buildGraph(distancesOf(wanted), n, width);
      return { graph, pairs: eigenpairs(graph, pairsWanted), columns: wanted };
    }

    return {
      cut({ weights, width, k }) {
        const key = JSON.stringify([weights, width]);
        if (state.key !== key) {
          state.solved = solve(weighted(weights), width);
          state.key = key;
          state.ways = {};
        }
        const { pairs } = state.solved, cut = state.ways[k] || kway(pairs.vectors, k, n);
        state.ways[k] = state.cut = cut;
        return { k, segments: cut.segments, strengths: strengths(cut, pairs.values),
          eigval: pairs.values.slice(0, pairsWanted) };
      },
      trace({ segment }) {
        const { graph, pairs, columns: used } = state.solved;
        return { segment, attributions: attributions(graph, pairs, state.cut, segment, used) };
      },
      /* The cut under one bandwidth, or local scales where it is 0; the same after seeded noise on every feature; and
         the cosine of the largest angle between the two spans. */
      span({ sigma, noise, k }) {
        const noisy = (seed) => columns.map((column) => {
          const source = { seed };
          const u = randomColumn(n, source), v = randomColumn(n, source);
          seed = source.seed;
          return column.map((x, i) => x + noise * Math.sqrt(-2 * Math.log(u[i] + 0.5 + 2 ** -33)) * Math.cos(2 * Math.PI * v[i]));
        });
        state.spans = state.spans || {};
        const found = [0, noise].map((level) => {
          const key = `${sigma} ${level}`;
          if (!state.spans[key]) {
            const D = level ? squaredDistances(noisy(1), n) : distancesOf(columns);
            state.spans[key] = eigenpairs(buildGraph(D, n, 1, sigma), pairsWanted, 1e-7, 0);
          }
          return state.spans[key];
        });
        const keys = Object.keys(state.spans);
        if (keys.length > 24) delete state.spans[keys[0]];
        const [before, after] = found, M = zeros(k, k);
        for (let a = 0; a < k; a++) for (let b = 0; b < k; b++) M[a][b] = dot(before.vectors[a], after.vectors[b]);
        return { k, eigval: before.values.slice(0, pairsWanted), segments: kway(before.vectors, k, n).segments,
          noisy: kway(after.vectors, k, n).segments, cosine: Math.min(1, ...svd(M).s) };
      },
      nudge({ segment, channel, amount }) { // the whole cut anew, bandwidths included
        const { columns: used, graph } = state.solved, { k, segments } = state.cut;
        const mask = segments.map((s) => (s === segment ? 1 : 0));
        const moved = used.map((column, c) => (c === channel ? column.map((v, i) => v + amount * mask[i]) : column));
        const { pairs } = solve(moved, graph.width), cut = kway(pairs.vectors, k, n);
        const best = bestOverlap(mask, cut.segments, k);
        return { strength: strengths(cut, pairs.values)[best.segment], share: best.share };
      },
    };
  }

  return { desk, symmetricEigen, svd, polar, squaredDistances, changedDistances, buildGraph, eigenpairs, kway, strengths,
    attributions, bestOverlap, times };
}

/* Shapley values of the players in `present`, by all their subsets; value(mask) is known for each (Shapley 1953). */
function ctraceShapley(players, value) {
  const n = players.length, factorial = [1];
  for (let i = 1; i <= n; i++) factorial.push(factorial[i - 1] * i);
  return players.map((player) => {
    const others = players.filter((p) => p !== player);
    let sum = 0;
    for (let s = 0; s < 1 << others.length; s++) {
      let mask = 0, size = 0;
      others.forEach((p, i) => { if (s >> i & 1) { mask |= 1 << p; size++; } });
      sum += factorial[size] * factorial[n - 1 - size] / factorial[n] * (value(mask | 1 << player) - value(mask));
    }
    return sum;
  });
}

if (typeof module !== "undefined" && module.exports) module.exports = { ctraceNumerics, shapleyValues: ctraceShapley };

if (typeof document !== "undefined" && !window.ctraceFigures) (function () {
  "use strict";
  const POSITIVE = [178, 24, 43], NEGATIVE = [33, 102, 172]; // ctrace.viz.paint
  const LUMINANCE = [0.299, 0.587, 0.114], INK = "#22262B";
  const SVG = "http://www.w3.org/2000/svg";
  let unique = 0;

  // ---- elements

  function el(tag, attributes = {}, ...children) {
    const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function slider(label, { min, max, step, value, say, change }) {
    const id = `ct-${++unique}`, shown = el("output", { for: id }, say(value));
    const input = el("input", { type: "range", id, min, max, step, value, "aria-valuetext": say(value) });
    input.addEventListener("input", () => {
      const now = Number(input.value);
      shown.textContent = say(now);
      input.setAttribute("aria-valuetext", say(now));
      change(now);
    });
    const box = el("div", { class: "ct-slider" }, el("label", { for: id }, label), input, shown);
    box.set = (now) => {
      input.value = now;
      shown.textContent = say(now);
      input.setAttribute("aria-valuetext", say(now));
    };
    return box;
  }

  /* Radio buttons in a row: arrow keys are the browser's own. */
  function choice(legend, options, value, change, kind = "ct-choice") {
    const name = `ct-${++unique}`, box = el("fieldset", { class: kind }, el("legend", {}, legend));
    const row = el("div", { class: "ct-row" });
    box.append(row);
    options.forEach(({ key, text, title, colour }) => {
      const id = `ct-${++unique}`, input = el("input", { type: "radio", name, id, value: key, "aria-label": title });
      input.checked = key === value;
      input.addEventListener("change", () => change(key));
      const label = el("label", { for: id, title }, text);
      if (colour) label.style.setProperty("--chip", colour);
      row.append(input, label);
    });
    box.set = (key) => row.querySelectorAll("input").forEach((input) => { input.checked = input.value === String(key); });
    return box;
  }

  function button(text, click, attributes = {}) {
    return el("button", { type: "button", onclick: click, ...attributes }, text);
  }

  function signed(value, digits = 2) {
    return `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(digits)}`;
  }

  const SUPERSCRIPT = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
  function power(exponent) {
    const digits = String(Math.abs(exponent)).split("").map((d) => SUPERSCRIPT[d]).join("");
    return `10${exponent < 0 ? "\u207b" : ""}${digits}`;
  }

  function percent(share) { return `${Math.round(100 * share)}%`; }

  // ---- payloads: integers with a scale

  function bytesOf(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function integers({ bits, data }) {
    const bytes = bytesOf(data);
    if (bits === 8) return new Int8Array(bytes.buffer);
    const view = new DataView(bytes.buffer), out = new Int16Array(bytes.length / 2);
    for (let i = 0; i < out.length; i++) out[i] = view.getInt16(2 * i, true);
    return out;
  }

  function columnsOf(features) {
    const whole = integers(features), c = features.scale.length, n = whole.length / c;
    return features.scale.map((scale, j) => Float64Array.from({ length: n }, (_, i) => whole[i * c + j] * scale));
  }

  // ---- a worker made of the numerics' own text, so that it works from file:// too; without one, the page computes

  function makeDesk(columns, n, wanted) {
    const waiting = new Map();
    let count = 0, worker = null, here = null;
    const program = `"use strict"; const numerics = (${ctraceNumerics.toString()})(); let desk = null;
      onmessage = ({ data: { id, question, given } }) => {
        try {
          if (question === "open") { desk = numerics.desk(given.columns, given.n, given.wanted); postMessage({ id }); }
          else postMessage({ id, answer: desk[question](given) });
        } catch (error) { postMessage({ id, error: String(error.message || error) }); }
      };`;
    try {
      const address = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
      worker = new Worker(address);
      worker.onmessage = ({ data: { id, answer, error } }) => {
        const { done, failed } = waiting.get(id);
        waiting.delete(id);
        if (error) failed(new Error(error)); else done(answer);
      };
    } catch (error) {
      here = ctraceNumerics().desk(columns, n, wanted);
    }
    function ask(question, given) {
      if (here) {
        return new Promise((done, failed) => setTimeout(() => {
          try { done(question === "open" ? undefined : here[question](given)); } catch (error) { failed(error); }
        }));
      }
      return new Promise((done, failed) => {
        waiting.set(++count, { done, failed });
        worker.postMessage({ id: count, question, given });
      });
    }
    ask("open", { columns, n, wanted });
    return { ask, close: () => worker && worker.terminate() };
  }

  // ---- photographs on canvas

  function loaded(address) {
    return new Promise((done, failed) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => failed(new Error("a photograph of the figure cannot be read"));
      image.src = address;
    });
  }

  function toned(image, tone) {
    const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height), { data } = pixels;
    for (let p = 0; p < data.length; p += 4) {
      const light = tone(LUMINANCE.reduce((s, w, c) => s + w * data[p + c], 0) / 255);
      data[p] = data[p + 1] = data[p + 2] = 255 * light;
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  /* One or several photographs with a grid of cells over each: pointer in, cells out. */
  class Photographs {
    constructor(images, [h, w], label) {
      Object.assign(this, { images, h, w });
      this.ghost = images.map((image) => toned(image, (l) => 0.84 + 0.14 * l)); // viz.spotlight
      this.grey = images.map((image) => toned(image, (l) => 0.35 + 0.6 * l)); // viz.laid_over
      this.canvases = images.map((image, number) => el("canvas", { width: 2 * image.naturalWidth,
        height: 2 * image.naturalHeight, role: "img",
        "aria-label": images.length > 1 ? `${label}, photograph ${number + 1}` : label }));
      this.element = el("div", { class: "ct-photos" }, ...this.canvases);
      const wide = images[0].naturalWidth > images[0].naturalHeight; // wide photographs one above the other
      this.element.style.setProperty("--columns", wide ? 1 : images.length);
    }

    listen({ move, leave, click }) {
      this.canvases.forEach((canvas, number) => {
        const cell = (event) => {
          const box = canvas.getBoundingClientRect();
          const x = Math.floor((event.clientX - box.left) / box.width * this.w);
          const y = Math.floor((event.clientY - box.top) / box.height * this.h);
          const inside = (v, most) => Math.min(Math.max(v, 0), most - 1);
          return (number * this.h + inside(y, this.h)) * this.w + inside(x, this.w);
        };
        canvas.addEventListener("pointermove", (event) => move(cell(event), event));
        canvas.addEventListener("pointerleave", leave);
        canvas.addEventListener("click", (event) => click(cell(event)));
      });
    }

    edges(canvas) {
      const round = (i, side, cells) => Math.round(i * side / cells);
      return [(j) => round(j, canvas.width, this.w), (i) => round(i, canvas.height, this.h)];
    }

    each(paint) {
      this.canvases.forEach((canvas, number) => {
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = true;
        paint(context, canvas, number, number * this.h * this.w);
      });
    }

    /* All segments outlined thinly, one of them in colour with a bold outline. */
    segments(segments, chosen, before) {
      this.each((context, canvas, number, first) => {
        const [X, Y] = this.edges(canvas);
        context.drawImage(chosen < 0 ? this.images[number] : this.ghost[number], 0, 0, canvas.width, canvas.height);
        if (chosen >= 0) {
          context.save();
          context.beginPath();
          for (let i = 0; i < this.h; i++) for (let j = 0; j < this.w; j++)
            if (segments[first + i * this.w + j] === chosen)
              context.rect(X(j), Y(i), X(j + 1) - X(j), Y(i + 1) - Y(i));
          context.clip();
          context.drawImage(this.images[number], 0, 0, canvas.width, canvas.height);
          context.restore();
        }
        this.outline(context, canvas, (i) => segments[first + i], chosen < 0 ? 1.4 : 0.8);
        if (chosen >= 0) this.outline(context, canvas, (i) => segments[first + i] === chosen, 2.6, true);
        if (before) this.outline(context, canvas, (i) => before[first + i], 2, true, [10, 8]);
      });
    }

    /* A channel in standard deviations over the grey photograph, full colour at 3, as in the static figures. */
    map(values, inside) {
      const small = el("canvas", { width: this.w, height: this.h }), brush = small.getContext("2d");
      this.each((context, canvas, number, first) => {
        context.drawImage(this.grey[number], 0, 0, canvas.width, canvas.height);
        const pixels = brush.createImageData(this.w, this.h);
        for (let i = 0; i < this.h * this.w; i++) {
          const share = Math.max(-1, Math.min(1, values[first + i] / 3)), colour = share > 0 ? POSITIVE : NEGATIVE;
          pixels.data.set([...colour, 255 * 0.9 * Math.abs(share)], 4 * i);
        }
        brush.putImageData(pixels, 0, 0);
        context.drawImage(small, 0, 0, canvas.width, canvas.height);
        this.outline(context, canvas, (i) => inside(first + i), 2, true);
      });
    }

    outline(context, canvas, of, wide, frame = false, dash = []) {
      const [X, Y] = this.edges(canvas), { h, w } = this, unit = canvas.width / (canvas.clientWidth || canvas.width / 2);
      const at = (i, j) => Number(i < 0 || j < 0 || i >= h || j >= w ? 0 : of(i * w + j));
      context.beginPath();
      for (let i = 0; i < h; i++) for (let j = 0; j <= w; j++)
        if ((frame || (j > 0 && j < w)) && at(i, j - 1) !== at(i, j)) {
          context.moveTo(X(j), Y(i)); context.lineTo(X(j), Y(i + 1));
        }
      for (let j = 0; j < w; j++) for (let i = 0; i <= h; i++)
        if ((frame || (i > 0 && i < h)) && at(i - 1, j) !== at(i, j)) {
          context.moveTo(X(j), Y(i)); context.lineTo(X(j + 1), Y(i));
        }
      context.lineCap = dash.length ? "butt" : "round";
      for (const [colour, width, dashed] of [["white", 2.2 * wide, []], [INK, wide, dash]]) {
        context.strokeStyle = colour;
        context.lineWidth = width * unit;
        context.setLineDash(dashed.map((d) => d * unit));
        context.stroke();
      }
      context.setLineDash([]);
    }
  }

  // ---- small charts

  function svg(width, height, label) {
    return el("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "ct-chart" });
  }

  function write(chart, x, y, text, attributes = {}) {
    const made = el("svg:text", { x, y, ...attributes }, text);
    chart.append(made);
    return made;
  }

  /* How often each value occurs inside and outside, as shares. */
  function histogram(inside, outside) {
    const bins = 28, least = -3.5, most = 3.5, width = 360, height = 118;
    const share = (values) => {
      const count = new Float64Array(bins);
      values.forEach((v) => { count[Math.max(0, Math.min(bins - 1, Math.floor((v - least) / (most - least) * bins)))]++; });
      return count.map((v) => v / Math.max(values.length, 1));
    };
    const sides = [share(inside), share(outside)], top = Math.max(...sides[0], ...sides[1]);
    const chart = svg(width, height, "Histogram of the channel's values inside and outside the segment");
    const x = (v) => 10 + (v - least) / (most - least) * (width - 20), base = height - 24;
    const line = (counts) => "M" + Array.from(counts).map((v, i) => {
      const y = base - v / top * (base - 14), a = x(least + i * (most - least) / bins);
      return `${a},${y} ${x(least + (i + 1) * (most - least) / bins)},${y}`;
    }).join(" L");
    chart.append(el("svg:path", { d: `${line(sides[1])} L${x(most)},${base} L${x(least)},${base} Z`, class: "ct-outside" }));
    chart.append(el("svg:path", { d: line(sides[0]), class: "ct-inside" }));
    chart.append(el("svg:path", { d: `M${x(least)},${base} H${x(most)}`, class: "ct-axis" }));
    for (const v of [-3, -2, -1, 0, 1, 2, 3]) write(chart, x(v), base + 13, v < 0 ? `\u2212${-v}` : v, { "text-anchor": "middle" });
    const mark = (text, y, kind) => {
      chart.append(el("svg:rect", { x: 14, y: y - 8, width: 14, height: 8, class: kind }));
      write(chart, 33, y, text);
    };
    mark("inside the segment", 12, "ct-inside");
    mark("outside", 27, "ct-outside");
    return chart;
  }

  // ---- figure: the channel explorer

  async function explorer(payload, mount) {
    const state = { hover: -1, segment: 0, channel: -1, literal: false, anchor: 0, off: new Set(), family: {},
      width: 1, k: 0, cut: null, attributions: null, before: null, measured: [], example: null };
    let example = null, columns = null, zscores = null, deviation = null, photographs = null, maps = null, desk = null;
    let dirty = false, running = false, generation = 0;

    const speech = el("p", { class: "ct-status", "aria-live": "polite" });
    const proof = el("p", { class: "ct-proof" });
    const chips = el("div"), settings = el("div", { class: "ct-settings" }), view = el("div", { class: "ct-view" });
    const heading = el("p", { class: "ct-heading" }), legend = el("p", { class: "ct-small" });
    const bars = el("ol", { class: "ct-bars", "aria-label": "Channels of the segment, sorted" });
    const detail = el("div", { class: "ct-detail" }), tip = el("div", { class: "ct-tip", hidden: true });
    const sign = choice("Sign", [
      { key: "effect", text: "of the effect", title: "Sign of the effect: first the channel that strengthens the segment most" },
      { key: "literal", text: "as published", title: "As published, the negated score: first the channel that weakens the segment most" },
    ], "effect", (key) => { state.literal = key === "literal"; showBars(); showDetail(); speak(signWords()); });
    const chooser = choice("Photographs and features", payload.examples.map(({ label }, i) => ({ key: String(i), text: label })),
      "0", (key) => open(Number(key)));
    const hint = el("p", { class: "ct-small" }, "Point at a photograph: a segment is outlined. Click it: its channels, sorted. "
      + "Click a bar: the channel's map, its values inside and outside, and what happens when it is flattened or nudged.");
    mount.append(hint, chooser, settings, el("div", { class: "ct-columns" },
      el("div", {}, view, chips, speech), el("div", {}, sign, heading, legend, bars)), detail, proof, tip);

    function speak(text) { speech.textContent = text; }
    function signWords() {
      return state.literal ? "As published: the sign is turned around, and what strengthens the segment most stands last."
        : "Sign of the effect: what strengthens the segment most stands first.";
    }

    function weights() {
      const w = columns.map(() => 1);
      for (const [name, members] of example.families) members.forEach((c) => { w[c] = state.family[name]; });
      state.off.forEach((c) => { w[c] = 0; });
      return w;
    }

    async function open(number) {
      const mine = ++generation;
      if (desk) desk.close();
      desk = null;
      example = payload.examples[number];
      state.example = number;
      columns = columnsOf(example.features);
      const n = columns[0].length;
      deviation = columns.map((column) => {
        const mean = column.reduce((a, b) => a + b, 0) / n;
        return [mean, Math.sqrt(column.reduce((s, v) => s + (v - mean) ** 2, 0) / n)];
      });
      zscores = columns.map((column, c) => column.map((v) => (deviation[c][1] ? (v - deviation[c][0]) / deviation[c][1] : 0)));
      const known = example.cuts[example.k], segments = bytesOf(known.segments);
      Object.assign(state, { hover: -1, segment: segments[example.anchor], channel: -1, off: new Set(), width: 1, k: example.k,
        attributions: example.attributions, before: null, measured: [], anchor: example.anchor,
        cut: { k: example.k, segments, strengths: known.strengths, eigval: example.eigval } });
      state.family = Object.fromEntries(example.families.map(([name]) => [name, 1]));
      const images = await Promise.all(example.photos.map(loaded));
      if (mine !== generation) return;
      photographs = new Photographs(images, example.grid, example.label);
      maps = new Photographs(images, example.grid, "A channel over the photograph");
      photographs.listen({
        move: (cell, event) => { hover(state.cut.segments[cell], event); },
        leave: () => hover(-1),
        click: (cell) => { state.anchor = cell; choose(state.cut.segments[cell]); },
      });
      view.replaceChildren(photographs.element);
      bars.replaceChildren(); // other channels
      detail.replaceChildren();
      showSettings();
      showSegments();
      showBars(); // those of ctrace, until the page has its own
      desk = makeDesk(columns, n, example.eigval.length);
      mount.dataset.state = "working";
      again("");
    }

    function showSettings() {
      const most = example.eigval.length - 1;
      const parts = [
        slider("Segments k", { min: 2, max: most, step: 1, value: state.k, say: String,
          change: (k) => { state.k = k; forget(); again(`${k} segments.`); } }),
        slider("Bandwidth", { min: -1, max: 1.5, step: 0.05, value: Math.log2(state.width),
          say: (v) => `\u00d7 ${(2 ** v).toFixed(2)}`,
          change: (v) => { state.width = 2 ** v; forget(); again(`Bandwidth times ${(2 ** v).toFixed(2)}.`); } }),
      ];
      if (example.families.length) {
        const inner = example.families.map(([name]) => slider(name, { min: 0, max: 2, step: 0.1, value: state.family[name],
          say: (v) => `\u00d7 ${v.toFixed(1)}`,
          change: (v) => { state.family[name] = v; forget(); again(`Weight of ${name} times ${v.toFixed(1)}.`); } }));
        parts.push(el("details", {}, el("summary", {}, "Weigh the families"), ...inner));
      }
      settings.replaceChildren(...parts, button("Start again", () => { open(state.example); chooser.querySelector("input:checked").focus(); }));
    }

    function forget() { state.before = null; state.measured = []; }

    /* Cut and trace with the newest settings; what was asked meanwhile is asked once. */
    async function again(said) {
      dirty = said == null ? "" : said;
      if (running) return;
      running = true;
      mount.dataset.state = "working";
      const mine = generation;
      try {
        while (dirty !== false && mine === generation) {
          const words = dirty, start = performance.now();
          dirty = false;
          const cut = await desk.ask("cut", { weights: weights(), width: state.width, k: state.k });
          if (mine !== generation) break;
          const took = performance.now() - start;
          state.cut = cut;
          let left = "";
          if (state.before) {
            const best = overlap(state.before.mask, cut);
            state.segment = best.segment;
            const names = Array.from(state.off, (c) => example.names[c]).join(", ");
            left = names ? `Without ${names}: ${percent(best.share)} of the segment is left (dashed: as it was).` : "";
            mount.dataset.left = best.share;
          } else {
            state.segment = cut.segments[state.anchor];
            delete mount.dataset.left;
          }
          state.attributions = null;
          showSegments();
          const gap = cut.eigval[cut.k - 1] - cut.eigval[cut.k];
          prove(cut, took);
          const traced = await desk.ask("trace", { segment: state.segment });
          if (mine !== generation) break;
          state.attributions = traced.attributions;
          proveGradient();
          showBars();
          showDetail();
          speak([words, left, `Eigengap ${gap.toPrecision(2)}.`].filter(Boolean).join(" "));
        }
      } catch (error) {
        speak(`This cut cannot be made: ${error.message}.`);
      }
      running = false;
      if (mine === generation) mount.dataset.state = "ready";
      else if (desk) again("");
    }

    function overlap(mask, cut) {
      let best = { share: 0, segment: 0 };
      for (let j = 0; j < cut.k; j++) {
        let both = 0, either = 0;
        mask.forEach((m, i) => { const s = cut.segments[i] === j; both += m && s; either += m || s; });
        if (both / either > best.share) best = { share: both / either, segment: j };
      }
      return best;
    }

    /* Where ctrace cut the same features when the page was built: is this the same cut? */
    function prove(cut, took) {
      mount.dataset.took = took;
      const known = example.cuts[cut.k];
      if (!known || !isPlain()) {
        proof.textContent = `Cut in your browser in ${(took / 1000).toFixed(2)} seconds.`;
        return;
      }
      const there = bytesOf(known.segments), differ = cut.segments.filter((s, i) => s !== there[i]).length;
      const error = Math.max(...cut.eigval.map((v, i) => Math.abs(v - example.eigval[i])));
      mount.dataset.differ = differ;
      mount.dataset.error = error;
      const same = differ ? `${differ} of ${there.length} cells fall otherwise` : `all ${there.length} cells fall alike`;
      proof.textContent = `Cut in your browser in ${(took / 1000).toFixed(2)} seconds. Beside ctrace's own cut, `
        + `made when this page was built: ${same}, eigenvalues within ${error.toExponential(0)}.`;
    }

    function isPlain() {
      return state.width === 1 && !state.off.size && Object.values(state.family).every((v) => v === 1);
    }

    function proveGradient() {
      const there = example.attributions, own = bytesOf(example.cuts[example.k].segments)[example.anchor];
      if (!isPlain() || state.cut.k !== example.k || state.segment !== own) return;
      const most = Math.max(...there.map(Math.abs));
      const error = Math.max(...state.attributions.map((v, c) => Math.abs(v - there[c]))) / most;
      mount.dataset.gradient = error;
      proof.textContent += ` Attributions within ${error.toExponential(0)} of the largest.`;
    }

    async function choose(segment) {
      forget();
      if (running) { dirty = ""; return; } // the cut under way goes on to the anchor's segment
      state.segment = segment;
      state.attributions = null;
      mount.dataset.state = "working";
      showSegments();
      const mine = generation, cut = state.cut;
      const traced = await desk.ask("trace", { segment });
      if (mine !== generation || cut !== state.cut || state.segment !== segment) return;
      state.attributions = traced.attributions;
      showBars();
      showDetail();
      if (state.attributions) {
        const order = ranked();
        speak(`${segmentWords(segment)}. First ${example.names[order[0]]}, last ${example.names[order[order.length - 1]]}.`);
      }
      mount.dataset.state = "ready";
    }

    function segmentWords(j) {
      const { segments, strengths } = state.cut;
      const size = segments.reduce((a, s) => a + (s === j), 0);
      return `Segment ${j + 1}: ${percent(size / segments.length)} of the cells, strength ${strengths[j].toFixed(4)}`;
    }

    function hover(segment, event) {
      if (event && event.pointerType === "mouse" && segment >= 0) {
        tip.hidden = false;
        tip.textContent = `Segment ${segment + 1}: click for its channels`;
        const box = mount.getBoundingClientRect();
        tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - 210)}px`;
        tip.style.top = `${event.clientY - box.top + 16}px`;
      } else tip.hidden = true;
      if (segment === state.hover) return;
      state.hover = segment;
      mount.dataset.outlined = segment >= 0 ? segment : state.segment;
      photographs.segments(state.cut.segments, segment >= 0 ? segment : state.segment, state.before && state.before.mask);
    }

    function showSegments() {
      photographs.segments(state.cut.segments, state.hover >= 0 ? state.hover : state.segment, state.before && state.before.mask);
      mount.dataset.outlined = state.segment;
      const focused = chips.contains(document.activeElement);
      const row = choice("Segment", Array.from({ length: state.cut.k }, (_, j) => ({ key: String(j), text: String(j + 1),
        title: segmentWords(j) })), String(state.segment), (key) => {
        state.anchor = middle(Number(key));
        choose(Number(key));
      });
      row.querySelectorAll("label").forEach((label, j) => {
        label.addEventListener("pointerenter", () => hover(j));
        label.addEventListener("pointerleave", () => hover(-1));
      });
      chips.replaceChildren(row);
      if (focused) row.querySelector("input:checked").focus({ preventScroll: true });
      heading.textContent = segmentWords(state.segment);
      if (!state.attributions) bars.setAttribute("aria-busy", "true");
    }

    /* A cell of the segment: one with the most neighbours in it. */
    function middle(segment) {
      const { segments } = state.cut, [h, w] = example.grid;
      let best = segments.indexOf(segment), most = -1;
      segments.forEach((s, i) => {
        if (s !== segment) return;
        const y = Math.floor(i / w) % h, x = i % w;
        let near = 0;
        for (let a = -2; a <= 2; a++) for (let b = -2; b <= 2; b++)
          if (y + a >= 0 && y + a < h && x + b >= 0 && x + b < w) near += segments[i + a * w + b] === segment;
        if (near > most) { most = near; best = i; }
      });
      return best;
    }

    function values() { return state.attributions.map((v, c) => (state.off.has(c) ? 0 : state.literal ? -v : v)); }
    function ranked() {
      const v = values();
      return v.map((_, c) => c).sort((a, b) => v[b] - v[a] || a - b);
    }

    function showBars() {
      bars.removeAttribute("aria-busy");
      if (!state.attributions) {
        bars.replaceChildren(el("li", {}, "No gradient here: two segments are empty, or this one is."));
        return;
      }
      const v = values(), order = ranked(), most = Math.max(...v.map(Math.abs)) || 1;
      const exponent = Math.floor(Math.log10(most)), unit = 10 ** exponent;
      legend.replaceChildren(`Each bar is a channel: one number for each cell. Attribution in ${power(exponent)}. `,
        el("b", { class: "ct-red" }, "Red"), state.literal ? ": less of it inside makes the segment stronger. " : ": more of it inside makes the segment stronger. ",
        el("b", { class: "ct-blue" }, "Blue"), ": the reverse. Click one.");
      const focused = bars.contains(document.activeElement) ? state.channel : -1;
      bars.replaceChildren(...order.map((c, place) => {
        const share = v[c] / most;
        const fill = el("span", { class: v[c] > 0 ? "ct-fill ct-pos" : "ct-fill ct-neg" });
        fill.style.left = `${50 + Math.min(share, 0) * 50}%`;
        fill.style.width = `${Math.abs(share) * 50}%`;
        const shown = signed(v[c] / unit);
        const row = button("", () => pick(c), { class: "ct-bar", "data-channel": c, "aria-pressed": String(c === state.channel),
          tabindex: (state.channel < 0 ? place === 0 : c === state.channel) ? 0 : -1,
          "aria-label": `${place + 1} of ${order.length}, ${example.names[c]}, ${shown} times ten to the ${exponent}${state.off.has(c) ? ", flattened" : ""}` });
        row.append(el("span", { class: "ct-name" }, example.names[c]), el("span", { class: "ct-track" }, fill),
          el("span", { class: "ct-value" }, shown));
        if (state.off.has(c)) row.classList.add("ct-off");
        return el("li", {}, row);
      }));
      if (focused >= 0) { const row = barOf(focused); if (row) row.focus({ preventScroll: true }); }
    }

    function barOf(c) { return bars.querySelector(`[data-channel="${c}"]`); }

    bars.addEventListener("keydown", (event) => {
      const rows = Array.from(bars.querySelectorAll(".ct-bar")), at = rows.indexOf(document.activeElement);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (to === undefined || at < 0) return;
      event.preventDefault();
      const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
      rows.forEach((other) => { other.tabIndex = other === row ? 0 : -1; });
      row.focus();
    });

    function pick(c) {
      state.channel = c;
      state.measured = [];
      bars.querySelectorAll(".ct-bar").forEach((row) => {
        const own = Number(row.dataset.channel) === c;
        row.setAttribute("aria-pressed", String(own));
        row.tabIndex = own ? 0 : -1;
      });
      showDetail();
      const words = detail.querySelector(".ct-means");
      speak(`${example.names[c]}. ${words ? words.textContent : ""}`);
    }

    function showDetail() {
      const c = state.channel, focused = detail.contains(document.activeElement) ? document.activeElement.dataset.act : null;
      if (c < 0 || !state.attributions) { detail.replaceChildren(); return; }
      const { segments } = state.cut, j = state.segment, inside = [], outside = [];
      zscores[c].forEach((v, i) => (segments[i] === j ? inside : outside).push(v));
      const mean = (list) => list.reduce((a, b) => a + b, 0) / Math.max(list.length, 1);
      maps.map(zscores[c], (i) => segments[i] === j);
      maps.canvases.forEach((canvas, i) => canvas.setAttribute("aria-label", `${example.names[c]} over photograph ${i + 1}: red above its mean, blue below`));
      const flat = state.off.has(c), a = state.attributions[c], place = ranked().indexOf(c) + 1;
      mount.dataset.inside = mean(inside);
      mount.dataset.outside = mean(outside);
      const does = flat ? "is flattened: the same everywhere, so it cannot tell cells apart."
        : a > 0 ? "supports this segment: raised inside it, the segment gets stronger."
          : "inhibits this segment: raised inside it, the segment gets weaker.";
      const listed = state.literal ? ` With the published sign it stands at ${place} of ${columns.length}.`
        : ` It stands at ${place} of ${columns.length}.`;
      detail.replaceChildren(
        el("p", { class: "ct-heading" }, `${example.names[c]} `, el("span", { class: "ct-plain" }, does + listed)),
        el("div", { class: "ct-columns" },
          el("div", {}, maps.element, el("p", { class: "ct-small" }, "Red: above its mean over all cells. Blue: below.")),
          el("div", {}, histogram(inside, outside),
            el("p", { class: "ct-small ct-means" }, `Mean inside ${signed(mean(inside))}, outside ${signed(mean(outside))} standard deviations.`),
            el("div", { class: "ct-row" },
              button(flat ? "Put this channel back" : "Flatten this channel", () => flatten(c), { "data-act": "flatten", "aria-pressed": String(flat) }),
              button("Nudge down", () => nudge(-1), { "data-act": "down", disabled: flat }),
              button("Nudge up", () => nudge(1), { "data-act": "up", disabled: flat })),
            nudges())));
      if (focused) { const act = detail.querySelector(`[data-act="${focused}"]`); if (act) act.focus({ preventScroll: true }); }
    }

    function flatten(c) {
      if (running) return;
      if (!state.before) {
        const mask = Uint8Array.from(state.cut.segments, (s) => (s === state.segment ? 1 : 0));
        state.before = { mask, anchor: state.anchor };
      }
      const had = state.off.has(c);
      if (had) state.off.delete(c); else state.off.add(c);
      if (!state.off.size) state.before = null;
      state.measured = [];
      again(had ? `${example.names[c]} is back.` : "");
    }

    // Steps of a twentieth of the channel's standard deviation, up to six each way.
    const STEP = 0.05, FAR = 6;
    async function nudge(direction) {
      const c = state.channel, j = state.segment, cut = state.cut;
      const used = state.measured.map((m) => m.level);
      const level = direction > 0 ? Math.max(0, ...used) + 1 : Math.min(0, ...used) - 1;
      if (running || Math.abs(level) > FAR) { speak(`No further: ${FAR} steps each way.`); return; }
      running = true;
      mount.dataset.state = "working";
      const amount = level * STEP * deviation[c][1], mine = generation;
      try {
        const { strength, share } = await desk.ask("nudge", { segment: j, channel: c, amount });
        if (mine !== generation) return;
        const size = cut.segments.reduce((s, v) => s + (v === j), 0);
        const predicted = cut.strengths[j] + size * amount * state.attributions[c];
        state.measured.push({ level, strength, predicted, share });
        mount.dataset.predicted = predicted;
        mount.dataset.measured = strength;
        showDetail();
        speak(`${direction > 0 ? "Raised" : "Lowered"} by ${Math.abs(level * STEP).toFixed(2)} standard deviations inside: `
          + `predicted strength ${predicted.toFixed(4)}, measured ${strength.toFixed(4)}; ${percent(share)} of the segment is left.`);
      } finally {
        running = false;
        if (mine === generation) mount.dataset.state = "ready";
        if (dirty !== false && desk) again(dirty);
      }
    }

    function nudges() {
      if (!state.measured.length) {
        return el("p", { class: "ct-small" }, `Nudge: raise or lower it inside the segment by ${STEP} standard deviations, and cut again.`);
      }
      const c = state.channel, now = state.cut.strengths[state.segment], width = 360, height = 132;
      const size = state.cut.segments.reduce((s, v) => s + (v === state.segment), 0);
      const slope = size * STEP * deviation[c][1] * state.attributions[c];
      const far = Math.max(2, ...state.measured.map((m) => Math.abs(m.level)));
      const all = [now - far * slope, now + far * slope, ...state.measured.map((m) => m.strength)];
      const low = Math.min(...all), high = Math.max(...all), room = (high - low) * 0.12 || 1e-4;
      const x = (level) => 58 + (level + far) / (2 * far) * (width - 78);
      const y = (s) => height - 26 - (s - low + room) / (high - low + 2 * room) * (height - 36);
      const last = state.measured[state.measured.length - 1];
      const chart = svg(width, height, `Strength against the nudge: the predicted line, and ${state.measured.length} measured`);
      chart.append(el("svg:path", { d: `M58,${height - 26} H${width - 12} M58,6 V${height - 26}`, class: "ct-axis" }));
      chart.append(el("svg:path", { d: `M${x(-far)},${y(now - far * slope)} L${x(far)},${y(now + far * slope)}`, class: "ct-line" }));
      for (const level of [-far, 0, far]) write(chart, x(level), height - 12, `${signed(level * STEP, 2)}`, { "text-anchor": "middle" });
      for (const s of [low, high]) write(chart, 54, y(s) + 4, s.toFixed(4), { "text-anchor": "end" });
      chart.append(el("svg:circle", { cx: x(0), cy: y(now), r: 3.5, class: "ct-dot" }));
      state.measured.forEach((m) => chart.append(el("svg:circle", { cx: x(m.level), cy: y(m.strength), r: 4.5, class: "ct-dot" })));
      return el("div", {}, chart, el("p", { class: "ct-small" }, `Strength against the nudge in standard deviations. Line: predicted. `
        + `Dots: measured by cutting again. Last: predicted ${last.predicted.toFixed(4)}, measured ${last.strength.toFixed(4)}, `
        + `${percent(last.share)} of the segment left.`));
    }

    await open(0);
  }

  // ---- figure: a bird to take apart

  /* Bars about a zero line: [name, value, note]; the rows are texts, not buttons. */
  function barRows(rows, digits, label) {
    const most = Math.max(...rows.map(([, v]) => Math.abs(v))) || 1;
    return el("ul", { class: "ct-bars ct-still", "aria-label": label }, ...rows.map(([name, v, chosen]) => {
      const fill = el("span", { class: v > 0 ? "ct-fill ct-pos" : "ct-fill ct-neg" });
      fill.style.left = `${50 + Math.min(v / most, 0) * 50}%`;
      fill.style.width = `${Math.abs(v / most) * 50}%`;
      return el("li", { class: chosen ? "ct-bar ct-chosen" : "ct-bar" }, el("span", { class: "ct-name" }, name),
        el("span", { class: "ct-track" }, fill), el("span", { class: "ct-value" }, signed(v, digits)));
    }));
  }

  async function bird(payload, mount) {
    const { species, parts } = payload, players = [...parts, "toadstool"], MARK = parts.length;
    const whole = (1 << parts.length) - 1;
    const state = { model: 0, present: whole, swap: -1 };
    const own = payload.birds, tables = own.map((b) => b.logits.map((table) => columnsOf(table)));
    let number = 0, sheet = null, photograph = null, over = -1;
    const speech = el("p", { class: "ct-status", "aria-live": "polite" }), view = el("div", { class: "ct-view" });
    const controls = el("div"), heading = el("p", { class: "ct-heading" }), logits = el("div"), values = el("div");
    const tip = el("div", { class: "ct-tip", hidden: true });
    mount.append(
      el("p", { class: "ct-small" }, "Click a part of the bird to take it away, or a button below to bring it back. The toadstool is not part of any bird."),
      choice("Bird", own.map(({ label }, i) => ({ key: String(i), text: label })), "0", (key) => open(Number(key))),
      choice("Model", payload.models.map((text, i) => ({ key: String(i), text })), "0", (key) => { state.model = Number(key); show(); }),
      el("div", { class: "ct-columns" }, el("div", {}, view, controls, speech), el("div", {}, heading, logits, values)), tip);

    function row(index) { return tables[number][state.model].map((column) => column[index]); }
    function place() { return state.swap < 0 ? state.present : (2 << MARK) + state.swap; }
    function answer(z) { return z.indexOf(Math.max(...z)); }

    async function open(next) {
      number = next;
      sheet = await loaded(own[number].sheet);
      if (next !== number) return;
      Object.assign(state, { present: whole, swap: -1 });
      const side = own[number].side, blank = el("canvas", { width: side, height: side });
      blank.naturalWidth = blank.naturalHeight = side;
      photograph = new Photographs([blank], own[number].grid, "The bird");
      const hit = (cell) => bytesOf(own[number].where)[cell];
      photograph.listen({
        move: (cell, event) => { over = drawn(hit(cell)) ? hit(cell) : -1; pointed(event); },
        leave: () => { over = -1; pointed(); },
        click: (cell) => { if (drawn(hit(cell))) toggle(hit(cell)); },
      });
      view.replaceChildren(photograph.element);
      show();
    }

    function drawn(part) { return part < players.length && (state.swap < 0 ? state.present : whole) >> part & 1; }

    function pointed(event) {
      tip.hidden = over < 0;
      if (over >= 0) {
        tip.textContent = `${players[over]}: click to take it away`;
        const box = mount.getBoundingClientRect();
        tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - 220)}px`;
        tip.style.top = `${event.clientY - box.top + 16}px`;
      }
      draw();
    }

    function draw() {
      const { side, across } = own[number], at = place(), where = bytesOf(own[number].where);
      photograph.each((context, canvas) => {
        context.drawImage(sheet, at % across * side, Math.floor(at / across) * side, side, side, 0, 0, canvas.width, canvas.height);
        if (over >= 0) photograph.outline(context, canvas, (i) => where[i] === over, 2, true);
      });
    }

    function toggle(part) {
      if (state.swap >= 0) { state.swap = -1; state.present = whole; }
      state.present ^= 1 << part;
      over = -1;
      tip.hidden = true;
      show(part);
    }

    function show() {
      const b = own[number], z = row(place()), said = answer(z), act = document.activeElement;
      const focused = controls.contains(act) ? act.dataset.act : null;
      draw();
      photograph.canvases[0].setAttribute("aria-label", `A ${species[b.target]}; drawn: ${state.swap >= 0 ? `whole, with another ${b.swaps[state.swap][0]}`
        : players.filter((_, p) => state.present >> p & 1).join(", ") || "no part"}`);
      const swapRow = el("select", { "aria-label": "Swap a part of the whole bird", "data-act": "swap" },
        el("option", { value: -1 }, "swap a part of the whole bird \u2026"),
        ...b.swaps.map(([part, variant], i) => el("option", { value: i, selected: i === state.swap }, `${part}: ${variant}`)));
      swapRow.addEventListener("change", () => { state.swap = Number(swapRow.value); state.present = whole; show(); });
      controls.replaceChildren(el("div", { class: "ct-row" }, ...players.map((name, p) => button(name, () => toggle(p),
        { "data-act": name, "aria-pressed": String(Boolean((state.swap < 0 ? state.present : whole) >> p & 1)) }))), swapRow);
      if (focused) { const again = controls.querySelector(`[data-act="${focused}"]`); if (again) again.focus({ preventScroll: true }); }
      heading.textContent = `${payload.models[state.model]} says ${species[said]}`;
      const order = species.map((_, i) => i);
      logits.replaceChildren(el("p", { class: "ct-small" }, "Logits, their mean removed. Bold: what the bird is."),
        barRows(order.map((i) => [species[i], z[i], i === b.target]), 2, "Logits of the species"));
      const words = [`The model says ${species[said]}; logit of ${species[b.target]} ${signed(z[b.target])}.`];
      if (state.swap >= 0) {
        const before = row(whole)[b.target];
        values.replaceChildren();
        words.push(`With ${b.swaps[state.swap][1]} as its ${b.swaps[state.swap][0]} it changed by ${signed(z[b.target] - before)}.`);
        delete mount.dataset.sum;
      } else {
        const present = players.map((_, p) => p).filter((p) => state.present >> p & 1);
        const shares = ctraceShapley(present, (mask) => row(mask)[b.target]), none = row(0)[b.target];
        values.replaceChildren(el("p", { class: "ct-small" }, `Shapley values for ${species[b.target]}: what each adds, on average over all orders. `
          + `They sum to ${signed(z[b.target] - none)}, the logit of this picture minus that without any of them.`),
        barRows(present.map((p, i) => [players[p], shares[i]]), 2, "Shapley values"));
        mount.dataset.sum = shares.reduce((a, c) => a + c, 0);
        mount.dataset.whole = z[b.target] - none;
        if (state.present === whole) {
          mount.dataset.shares = Math.max(...shares.map((v, i) => Math.abs(v - b.shapley[state.model][i])));
        }
        const other = answer(row(state.present ^ 1 << MARK));
        words.push(`${state.present >> MARK & 1 ? "Without" : "With"} the toadstool it says ${species[other]}.`);
      }
      mount.dataset.said = species[said];
      speech.textContent = words.join(" ");
      mount.dataset.state = "ready";
    }

    await open(0);
  }

  // ---- figure: bandwidth, k and what a little noise leaves

  const SEGMENT_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#882255", "#56B4E9", "#D55E00"];

  /* The numbering of `labels` that shares most points with `to`: the best of all pairings, by subsets. */
  function matched(labels, to, k) {
    const both = Array.from({ length: k }, () => new Float64Array(k));
    labels.forEach((a, i) => { both[a][to[i]] += 1; });
    let best = new Map([[0, { value: 0, taken: [] }]]);
    for (let a = 0; a < k; a++) {
      const next = new Map();
      best.forEach(({ value, taken }, mask) => {
        for (let b = 0; b < k; b++) {
          if (mask >> b & 1) continue;
          const key = mask | 1 << b, sum = value + both[a][b];
          if (!next.has(key) || next.get(key).value < sum) next.set(key, { value: sum, taken: [...taken, b] });
        }
      });
      best = next;
    }
    const { taken } = best.get((1 << k) - 1);
    return labels.map((a) => taken[a]);
  }

  function eigenvalueChart(eigval, k) {
    const width = 360, height = 190, least = Math.min(...eigval), top = 10, base = height - 28;
    const chart = svg(width, height, `Eigenvalues: ${eigval.map((v) => v.toFixed(3)).join(", ")}; the gap after number ${k} is ${(eigval[k - 1] - eigval[k]).toFixed(4)}`);
    const low = Math.max(0, least - 0.25 * (1 - least)), y = (v) => base - (v - low) / (1 - low) * (base - top);
    const x = (i) => 56 + (i + 0.5) * (width - 70) / eigval.length;
    chart.append(el("svg:path", { d: `M50,${top} V${base} H${width - 10}`, class: "ct-axis" }));
    chart.append(el("svg:rect", { x: 50, width: width - 60, y: y(eigval[k - 1]), height: Math.max(1, y(eigval[k]) - y(eigval[k - 1])), class: "ct-gap" }));
    eigval.forEach((v, i) => {
      chart.append(el("svg:circle", { cx: x(i), cy: y(v), r: 5, class: i < k ? "ct-dot" : "ct-ring" }));
      write(chart, x(i), base + 14, String(i + 1), { "text-anchor": "middle" });
    });
    for (const v of [1, low]) write(chart, 46, y(v) + 4, v.toFixed(v === 1 ? 0 : 3), { "text-anchor": "end" });
    write(chart, x(eigval.length - 1) + 8, y(eigval[k - 1]) - 5, `gap ${(eigval[k - 1] - eigval[k]).toPrecision(2)}`, { "text-anchor": "end" });
    return chart;
  }

  async function bandwidth(payload, mount) {
    const state = { k: payload.k, local: false, log: -1, noise: 0.02 };
    let example = null, desk = null, pictures = null, generation = 0, dirty = false, running = false;
    const speech = el("p", { class: "ct-status", "aria-live": "polite" }), proof = el("p", { class: "ct-proof" });
    const view = el("div", { class: "ct-columns" }), below = el("div");
    const sigma = slider("Bandwidth \u03c3", { min: -2, max: 2, step: 0.25, value: state.log, say: (v) => (2 ** v).toFixed(2),
      change: (v) => { state.log = v; again(); } });
    mount.append(
      el("p", { class: "ct-small" }, "Move the sliders: every change is cut anew, once as the photograph is and once with a little noise on every feature."),
      choice("Photograph", payload.examples.map(({ label }, i) => ({ key: String(i), text: label })), "0", (key) => open(Number(key))),
      choice("Scale", [{ key: "one", text: "one \u03c3 for all points" }, { key: "local", text: "local scales" }], "one", (key) => {
        state.local = key === "local";
        sigma.querySelector("input").disabled = state.local;
        again();
      }),
      el("div", { class: "ct-settings" }, sigma,
        slider("Segments k", { min: 2, max: payload.examples[0].eigval.local.length - 1, step: 1, value: state.k, say: String, change: (k) => { state.k = k; again(); } }),
        slider("Noise", { min: 0.005, max: 0.05, step: 0.005, value: state.noise, say: (v) => v.toFixed(3), change: (v) => { state.noise = v; again(); } })),
      view, below, speech, proof);

    async function open(number) {
      const mine = ++generation;
      if (desk) desk.close();
      desk = null;
      example = payload.examples[number];
      const columns = columnsOf(example.features), image = await loaded(example.photo);
      if (mine !== generation) return;
      pictures = ["as it is", "with noise"].map((words) => new Photographs([image], example.grid, `${example.label}, segments ${words}`));
      view.replaceChildren(...pictures.map((picture, i) => el("div", {}, picture.element, el("p", { class: "ct-small" }, i ? "With noise on every feature." : "As it is."))));
      pictures.forEach((picture) => picture.each((context, canvas) => context.drawImage(image, 0, 0, canvas.width, canvas.height)));
      desk = makeDesk(columns, columns[0].length, example.eigval.local.length);
      again();
    }

    function paint(picture, segments) {
      picture.each((context, canvas, _, first) => {
        const [X, Y] = picture.edges(canvas);
        context.drawImage(toned(picture.images[0], (l) => l), 0, 0, canvas.width, canvas.height);
        context.globalAlpha = 0.62; // viz.paint.coloured_segments
        for (let i = 0; i < picture.h; i++) for (let j = 0; j < picture.w; j++) {
          context.fillStyle = SEGMENT_COLOURS[segments[first + i * picture.w + j]];
          context.fillRect(X(j), Y(i), X(j + 1) - X(j), Y(i + 1) - Y(i));
        }
        context.globalAlpha = 1;
        picture.outline(context, canvas, (i) => segments[first + i], 0.8);
      });
    }

    async function again() {
      dirty = true;
      if (running) return;
      running = true;
      mount.dataset.state = "working";
      const mine = generation;
      try {
        while (dirty && mine === generation) {
          dirty = false;
          const start = performance.now(), asked = state.local ? 0 : 2 ** state.log;
          const found = await desk.ask("span", { sigma: asked, noise: state.noise, k: state.k });
          if (mine === generation) show(found, asked, performance.now() - start);
        }
      } catch (error) {
        speech.textContent = `This cut cannot be made: ${error.message}.`;
      }
      running = false;
      if (mine === generation) mount.dataset.state = "ready";
      else if (desk) again();
    }

    function show({ k, eigval, segments, noisy, cosine }, asked, took) {
      const there = matched(noisy, segments, k), kept = segments.filter((s, i) => s === there[i]).length / segments.length;
      paint(pictures[0], segments);
      paint(pictures[1], there);
      const sizes = Array.from({ length: k }, (_, j) => segments.filter((s) => s === j).length);
      below.replaceChildren(el("div", { class: "ct-columns" }, el("div", {}, eigenvalueChart(eigval, k)),
        el("div", {}, barTable([["points that keep their segment", kept], ["cosine of the span", cosine]]),
          el("p", { class: "ct-small" }, `1: nothing changed. Points in the segments: ${sizes.join(", ")}.`))));
      speech.textContent = `${state.local ? "Local scales" : `\u03c3 = ${asked.toFixed(2)}`}, k = ${k}: eigengap ${(eigval[k - 1] - eigval[k]).toPrecision(2)}. `
        + `With noise ${state.noise.toFixed(3)}, ${percent(kept)} of the points keep their segment; cosine of the span ${cosine.toFixed(2)}.`;
      const key = state.local ? "local" : String(asked), known = example.cuts[key];
      Object.assign(mount.dataset, { took, kept, cosine });
      delete mount.dataset.differ;
      delete mount.dataset.error;
      proof.textContent = `Cut twice in your browser in ${(took / 1000).toFixed(2)} seconds.`;
      if (!known || k !== payload.k) return;
      const own = bytesOf(known), differ = segments.filter((s, i) => s !== own[i]).length;
      const error = Math.max(...eigval.map((v, i) => Math.abs(v - example.eigval[key][i])));
      Object.assign(mount.dataset, { differ, error });
      proof.textContent += ` Beside ctrace's own cut, made when this page was built: `
        + `${differ ? `${differ} of ${own.length} cells fall otherwise` : `all ${own.length} cells fall alike`}, eigenvalues within ${error.toExponential(0)}.`;
    }

    function barTable(rows) {
      return el("ul", { class: "ct-bars ct-still" }, ...rows.map(([name, share]) => {
        const fill = el("span", { class: "ct-fill ct-plainfill" });
        fill.style.left = "0";
        fill.style.width = `${100 * share}%`;
        return el("li", { class: "ct-bar ct-wide" }, el("span", { class: "ct-name" }, name), el("span", { class: "ct-track ct-from0" }, fill),
          el("span", { class: "ct-value" }, share.toFixed(2)));
      }));
    }

    await open(0);
  }

  // ---- figure: which of the maps asked the trained model?

  async function guess(payload, mount) {
    const rounds = payload.rounds, letter = (i) => String.fromCharCode(65 + i);
    const played = rounds.map(() => -1); // the map that was picked
    const pictures = await Promise.all(rounds.map((round) => Promise.all([round.photo, ...round.maps.map((map) => map.picture)].map(loaded))));
    let number = 0;
    const heading = el("p", { class: "ct-heading" }), tiles = el("div", { class: "ct-tiles" });
    const speech = el("p", { class: "ct-status", "aria-live": "polite" }), after = el("div", { class: "ct-row" });
    const rows = choice("Picture", rounds.map(({ label }, i) => ({ key: String(i), text: label })), "0", (key) => open(Number(key)));
    mount.append(el("p", { class: "ct-small" }, payload.question), rows, heading, tiles, speech, after);

    function drawn(image, words) {
      const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight, role: "img", "aria-label": words });
      canvas.getContext("2d").drawImage(image, 0, 0);
      return canvas;
    }

    function tile(map, i) {
      const { asked } = rounds[number], picked = played[number], known = picked >= 0;
      const name = known ? map.name : `Map ${letter(i)}`;
      const choose = button("", () => pick(i), { class: "ct-tile", disabled: known, "aria-pressed": String(picked === i), "aria-label": name });
      choose.append(drawn(pictures[number][i + 1], name), el("span", {}, `${letter(i)}${picked === i ? ", your guess" : ""}`));
      if (!known) return el("div", {}, choose);
      const told = map.verdicts.map(([test, verdict]) => el("li", {}, `${test}: `, el("strong", {}, verdict)));
      return el("div", {}, choose, el("p", { class: i === asked ? "ct-small ct-chosen" : "ct-small" }, map.name), el("ul", { class: "ct-told" }, ...told));
    }

    function pick(i) {
      played[number] = i;
      show();
      (after.querySelector("button") || mount).focus({ preventScroll: true });
    }

    function open(next) {
      number = next;
      rows.set(next);
      show();
    }

    function show() {
      const { maps, asked, label } = rounds[number], picked = played[number];
      heading.textContent = picked < 0 ? `${label}: which map asked the trained model?` : `It is ${letter(asked)}.`;
      tiles.replaceChildren(el("div", {}, drawn(pictures[number][0], label), el("p", { class: "ct-small" }, "The picture")), ...maps.map(tile));
      const done = played.filter((i) => i >= 0).length, right = played.filter((i, n) => i === rounds[n].asked).length;
      const score = done ? ` Right so far: ${right} of ${done}.` : "";
      speech.textContent = picked < 0 ? `Pick one of ${maps.length}.${score}`
        : `You picked ${letter(picked)}, ${maps[picked].name}: ${picked === asked ? "right" : `not the one, which is ${letter(asked)}, ${maps[asked].name}`}.${score}`;
      const left = played.indexOf(-1);
      after.replaceChildren(...(picked < 0 ? [] : [left >= 0 ? button("Next picture", () => open(left))
        : button("Start again", () => { played.fill(-1); open(0); })]));
      Object.assign(mount.dataset, { asked: letter(asked), right, done });
      mount.dataset.state = "ready";
    }

    show();
  }

  // ---- mounting

  const figures = { explorer, bird, bandwidth, guess };

  /* Puts a live figure in place of the picture, whose description stays for those who cannot see it. */
  function mountAll() {
    document.querySelectorAll(".ctrace-touch:not([data-mounted])").forEach((holder) => {
      const script = holder.querySelector('script[type="application/json"]'), make = figures[holder.dataset.kind];
      if (!script || !make) return;
      holder.dataset.mounted = "";
      const figure = document.getElementById(holder.dataset.figure) || holder.querySelector("figure");
      const picture = figure && figure.querySelector("img");
      if (!picture) return;
      const mount = el("div", { class: "ct-figure", role: "group", "aria-label": holder.dataset.label });
      mount.append(el("p", { class: "ct-hidden" }, picture.alt));
      (picture.closest("a") || picture).before(mount);
      const start = () => {
        make(JSON.parse(script.textContent), mount).then(() => figure.classList.add("ct-live"),
          (error) => { mount.remove(); console.error(error); });
      };
      if (!("IntersectionObserver" in window)) { start(); return; }
      const watch = new IntersectionObserver((entries) => {
        if (entries.some((entry) => entry.isIntersecting)) { watch.disconnect(); start(); }
      }, { rootMargin: "400px" });
      watch.observe(figure);
    });
  }

  window.ctraceFigures = { mountAll, figures };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", mountAll);
  else mountAll();
})();
else if (typeof document !== "undefined") window.ctraceFigures.mountAll();
