"use strict";
{
  const NUMBER = /^[<-]?\s*[\d,.]+(?:e[+-]?\d+)?\s*(%|s|[kMGT]?B)?$/;
  const UNITS = { kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };
  const names = new Intl.Collator("en", { numeric: true });
  const value = (text) => {
    const found = NUMBER.exec(text);
    return found ? parseFloat(text.replace(/[<,\s]/g, "")) * (UNITS[found[1]] || 1) : NaN;
  };
  // Numbers before text, whichever way they are sorted.
  const compare = (a, b, sign) => {
    const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return sign * (Number.isNaN(x) ? names.compare(a, b) : x - y);
  };
  const text = (element) => element.textContent.trim();
  const button = (head) => {
    const made = document.createElement("button");
    made.type = "button";
    made.append(...head.childNodes);
    head.append(made);
    return made;
  };
  const isNumeric = (rows, cell) => rows.some((row) => !Number.isNaN(value(text(cell(row)))));

  // Each click on a title sorts its column: numbers the largest first, then the other way round.
  const sortable = (heads, rows, cell, attribute, on) => {
    heads.forEach((head, column) => {
      if (!text(head)) return;
      const clicked = button(head);
      clicked.addEventListener("click", () => {
        const all = rows();
        const first = isNumeric(all, (row) => cell(row, column)) ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        const marked = on(head, clicked);
        const way = marked.getAttribute(attribute) === first ? other : first;
        heads.forEach((one) => on(one, one.querySelector("button"))?.removeAttribute(attribute));
        marked.setAttribute(attribute, way);
        const sign = way === "descending" ? -1 : 1;
        const sorted = all.sort((a, b) => compare(text(cell(a, column)), text(cell(b, column)), sign));
        sorted[0]?.parentElement.append(...sorted);
      });
    });
  };

  const search = (place, count, show) => {
    const line = document.createElement("label");
    line.className = "search";
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = `Search ${place.dataset.search}`;
    input.setAttribute("aria-label", input.placeholder);
    const found = document.createElement("span");
    found.setAttribute("role", "status");
    line.append(input, found);
    place.before(line);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = show((text) => words.every((word) => text.toLowerCase().includes(word)), words.length > 0);
      found.textContent = words.length ? `${shown.toLocaleString("en")} of ${count.toLocaleString("en")}` : "";
    });
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    sortable([...table.tHead.rows[0].cells], () => [...body.rows], (row, column) => row.cells[column], "aria-sort", (head) => head);
  }
  for (const layers of document.querySelectorAll(".layers")) {
    const groups = [...layers.querySelectorAll(":scope > details")];
    const heads = [...layers.querySelectorAll(".columns > span")];
    const cell = (group, column) => group.firstElementChild.children[column];
    sortable(heads, () => [...layers.querySelectorAll(":scope > details")], cell, "data-sort", (head, made) => made);
    const rows = groups.map((group) => [...group.querySelectorAll("tbody tr")]);
    search(layers, rows.flat().length, (matches, isSearch) => {
      let shown = 0;
      groups.forEach((group, k) => {
        const name = (row) => group.dataset.beginning + text(row.cells[0]);
        const found = rows[k].filter((row) => !(row.hidden = !matches(name(row))));
        group.hidden = !found.length;
        group.open = isSearch && found.length > 0 && found.length <= 200;
        shown += found.length;
      });
      return shown;
    });
  }
  for (const place of document.querySelectorAll(".scroll[data-search]")) {
    const rows = [...place.querySelectorAll("tbody tr")];
    if (rows.length < 10) continue;
    search(place, rows.length, (matches) => rows.filter((row) => !(row.hidden = !matches(text(row)))).length);
  }
}
