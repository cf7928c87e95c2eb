// Sorting, filtering and a line that tells what a cell holds, for every .ctrace-matrix that has none yet.
// Without this script the table is whole: in families, with its intervals in titles and in the table below.
for (const box of document.querySelectorAll(".ctrace-matrix:not([data-alive])")) {
  box.dataset.alive = "";
  const table = box.querySelector("table"), bodies = [...table.tBodies];
  const heads = [...table.tHead.rows[0].cells], shown = new Set();
  const families = document.createElement("div"), told = document.createElement("p");
  const rows = bodies.flatMap(body => [...body.rows].filter(row => !row.matches(".group"))
    .map(row => ({row, body, family: body.dataset.family})));
  const all = document.createElement("tbody");
  families.className = "families";
  told.className = "told";
  told.setAttribute("aria-live", "polite");
  told.textContent = "Point at a number, or tap it, for its interval. Press a column's name to sort by it.";

  const chosen = family => shown.size === 0 || shown.has(family);
  const filter = () => {
    for (const body of bodies) body.hidden = !chosen(body.dataset.family);
    for (const {row, family} of rows) row.hidden = !chosen(family);
    for (const button of families.children) {
      const family = button.dataset.family;
      button.setAttribute("aria-pressed", String(family === undefined ? shown.size === 0 : shown.has(family)));
    }
  };
  const choose = (text, family) => {
    const button = families.appendChild(document.createElement("button"));
    button.type = "button";
    button.textContent = text;
    if (family !== undefined) button.dataset.family = family;
    button.onclick = () => {
      if (family === undefined) shown.clear();
      else if (!shown.delete(family)) shown.add(family);
      filter();
    };
  };
  choose("all");
  for (const body of bodies) choose(body.dataset.family, body.dataset.family);

  const valued = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === undefined ? null : Number(text);
  };
  const sort = (column, up) => {
    const sorted = rows.slice().sort((one, two) => {
      const a = valued(one.row, column), b = valued(two.row, column);
      return a === null || b === null ? (a === null) - (b === null) : up ? a - b : b - a;
    });
    all.append(...sorted.map(({row}) => row));
    bodies.forEach(body => body.remove());
    table.append(all);
  };
  const unsort = () => {
    for (const {row, body} of rows) body.append(row);
    all.remove();
    table.append(...bodies);
  };
  heads.forEach((head, column) => {
    if (!head.matches(".sort")) return;
    const name = head.querySelector("span"), button = document.createElement("button");
    button.type = "button";
    button.textContent = name.textContent;
    name.replaceChildren(button);
    const falls = "falls" in head.dataset, first = falls ? "ascending" : "descending";
    const second = falls ? "descending" : "ascending";
    button.onclick = () => {
      const now = head.getAttribute("aria-sort"), next = now === first ? second : now === second ? "" : first;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      next ? sort(column, next === "ascending") : unsort();
    };
  });

  const tell = event => {
    const cell = event.target.closest("td[title], td[data-told]");
    if (!cell) return;
    if (cell.title) { cell.dataset.told = cell.title; cell.removeAttribute("title"); }
    told.textContent = cell.dataset.told;
  };
  table.addEventListener("pointerover", tell);
  table.addEventListener("click", tell);
  box.prepend(families);
  box.insertBefore(told, box.querySelector(".frame"));
  filter();
}
