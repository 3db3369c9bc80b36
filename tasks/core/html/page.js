"use strict";
// Everything can be read without this: it adds the keyboard to the maps and sorting to the tables.
for (const map of document.querySelectorAll("table.map")) {
  const told = map.closest("figure").querySelector(".told");
  const columns = [...map.tHead.rows[0].cells].slice(1).map((one) => one.textContent);
  const rows = [...map.tBodies[0].rows];
  const grid = rows.map((row) => [...row.cells].slice(1));
  let chosen = grid[0][0];
  grid.forEach((cells, at) => cells.forEach((cell, column) => {
    const well = rows[at].cells[0].textContent + columns[column].padStart(2, "0");
    const exact = cell.querySelector("abbr");
    const count = cell.className === "e" ? "no cells" : (exact ? exact.title : cell.textContent) + " cells";
    cell.tabIndex = cell === chosen ? 0 : -1;
    cell.setAttribute("aria-label", well + ": " + count);
    cell.dataset.at = at + " " + column;
  }));
  const tell = (cell) => { told.textContent = "Well " + cell.getAttribute("aria-label"); };
  const choose = (row, column) => {
    const next = grid[Math.min(Math.max(row, 0), grid.length - 1)];
    const cell = next[Math.min(Math.max(column, 0), next.length - 1)];
    chosen.tabIndex = -1;
    chosen = cell;
    cell.tabIndex = 0;
    cell.focus();
  };
  map.addEventListener("focusin", (event) => { if (event.target.dataset.at) tell(event.target); });
  map.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td[data-at]");
    if (cell) tell(cell);
  });
  map.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-at]");
    if (cell) choose(...cell.dataset.at.split(" ").map(Number));
  });
  map.addEventListener("keydown", (event) => {
    if (!event.target.dataset.at || event.altKey || event.metaKey) return;
    const [row, column] = event.target.dataset.at.split(" ").map(Number);
    const last = grid[0].length - 1;
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? grid.length - 1 : row, last], PageUp: [0, column], PageDown: [grid.length - 1, column],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    choose(...to);
  });
}
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
      };
      const sorted = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...sorted);
    });
  });
}
