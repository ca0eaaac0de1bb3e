"""Shows one PDF per task, whose files come back: `pip install fpdf2`, then `python examples/invoices.py [FOLDER]`.

A task writes into an empty folder of its own, wherever it runs, and returns the file that shall survive it. fpdf2 has
to be installed where tasks run; a node without it gets none of them.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fpdf import FPDF

import p2pgrid as pg

MONTHS = ("January", "February", "March", "April", "May", "June")


@dataclass(frozen=True)
class Invoice:
    number: int
    customer: str
    hours: dict[str, float]


def render(invoice: Invoice) -> pg.File:
    pdf = FPDF()
    pdf.set_title(f"Invoice {invoice.number}")
    pdf.add_page()
    pdf.set_font("helvetica", size=16)
    pdf.cell(text=f"Invoice {invoice.number} for {invoice.customer}", new_x="LMARGIN", new_y="NEXT")
    pdf.set_font(size=11)
    with pdf.table(col_widths=(2, 1, 1)) as table:
        for row in (("Month", "Hours", "Sum"), *((m, f"{h:g}", f"{80 * h:,.2f}") for m, h in invoice.hours.items())):
            table.row(row)
    pdf.output(f"invoice-{invoice.number}.pdf")
    return pg.File(f"invoice-{invoice.number}.pdf")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="invoices-"))
    folder.mkdir(exist_ok=True)
    invoices = [Invoice(n, f"Customer {n}", {m: (7 * n + len(m)) % 40 + 0.5 for m in MONTHS}) for n in range(1, 41)]
    with pg.Grid() as grid:
        for invoice, file in zip(invoices, grid.map(render, invoices), strict=True):
            file.save(folder / f"{invoice.number:03}-{file.name}")

    made = sorted(folder.glob("*.pdf"))
    whole = [path for path in made if path.read_bytes().startswith(b"%PDF-") and b"%%EOF" in path.read_bytes()[-16:]]
    print(f"{len(whole)} PDF files in {folder}, {sum(path.stat().st_size for path in whole):,} bytes")
    return 0 if len(whole) == len(invoices) else 1


if __name__ == "__main__":
    sys.exit(main())
