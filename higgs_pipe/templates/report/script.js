// Tables shown as cards keep roles and column titles; the listening tables sort; one recording plays at a time.
for (const table of document.querySelectorAll("table")) {
  table.setAttribute("role", "table");
  for (const part of table.querySelectorAll("thead, tbody")) part.setAttribute("role", "rowgroup");
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const row of table.rows) {
    row.setAttribute("role", "row");
    for (const cell of row.cells) {
      if (cell.tagName === "TD") cell.dataset.label = titles[cell.cellIndex];
      const header = cell.closest("thead") ? "columnheader" : "rowheader";
      cell.setAttribute("role", cell.tagName === "TH" ? header : "cell");
    }
  }
}
for (const order of document.querySelectorAll("select.order")) {
  const body = document.getElementById(order.dataset.table).tBodies[0];
  const rows = [...body.rows];
  order.addEventListener("change", () => {
    const [key, direction] = order.value.split(" ");
    const place = (row) => Number(row.dataset[key]) * (direction === "down" ? -1 : 1);
    body.append(...[...rows].sort((a, b) => place(a) - place(b)));
  });
}
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) {
    if (audio !== event.target) audio.pause();
  }
}, true);
