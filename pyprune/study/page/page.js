"use strict";
// Light and dark: as the system says, until the button says otherwise.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); });
  system.addEventListener("change", label);
  button.hidden = false;
  label();
})();
// Tables that are sorted by a click on a column's name: by number where each cell begins with one, else by text.
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  const number = text => /^[-+]?[\d.]/.test(text) ? parseFloat(text) : NaN;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = [...body.rows], text = row => row.cells[column].textContent.trim();
      // Cells that are empty, or say that memory was short, come last in either order.
      const missing = row => text(row) === "" || text(row).startsWith("OOM");
      const numeric = rows.every(row => missing(row) || !isNaN(number(text(row))));
      rows.sort((a, b) => missing(a) - missing(b) || sign * (numeric
        ? (number(text(a)) || 0) - (number(text(b)) || 0) : text(a).localeCompare(text(b))));
      body.append(...rows);
    });
  });
});
