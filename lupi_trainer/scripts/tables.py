"""Tables of what was measured: nothing in them is cut or wrapped, however narrow the screen is."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Rows under a header, the first column left and the others right-aligned, indented by two spaces."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths))
        return "  ".join(["  " + cells[0].ljust(widths[0]), *others]).rstrip()

    return "\n".join(map(line, (header, *rows)))


def legend(columns: dict[str, str], shown: list[str]) -> str:
    """What the columns of a table mean, a line for each that is shown."""
    width = max(map(len, columns))
    return "\n".join(f"{name.ljust(width)}  {columns[name]}" for name in columns if name in shown)
