// A heading sorts its table: upwards, then downwards, then as it was written. What is not known stays at the end.
{
  const next = { ascending: "descending", descending: null };
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();

  const compare = (one, other) => {
    const difference = one - other;
    return isNaN(difference) ? one.localeCompare(other, "en", { numeric: true }) : difference;
  };

  const sorted = (rows, column, order) => {
    const sign = order === "ascending" ? 1 : -1;
    const known = rows.filter((row) => value(row, column) !== "");
    const unknown = rows.filter((row) => value(row, column) === "");
    return [...known.sort((one, other) => sign * compare(value(one, column), value(other, column))), ...unknown];
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const written = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];

    const sortBy = (heading) => {
      const before = heading.getAttribute("aria-sort");
      const order = before ? next[before] : "ascending";
      for (const each of headings) each.removeAttribute("aria-sort");
      if (order) heading.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(written, heading.cellIndex, order) : written));
    };

    for (const heading of headings.filter((each) => !each.hasAttribute("data-unsorted"))) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(heading.firstChild);
      button.addEventListener("click", () => sortBy(heading));
      heading.prepend(button);
    }
  }
}
