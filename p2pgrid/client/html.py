"""Objects of the client as notebooks show them: small tables, without anything that has to be installed.

Rule: nothing here asks the grid, and every text is escaped: names, errors and facts come from other machines.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

ROWS_MAX = 50


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table under a title."""
    listed = list(rows)
    more = f"<p>… and {len(listed) - ROWS_MAX} more</p>" if len(listed) > ROWS_MAX else ""
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in listed[:ROWS_MAX])
    return f"<b>{escape(title)}</b><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{more}"


def job(kind: str, shown: Mapping[str, Any]) -> str:
    """Return how a job stands, with a bar."""
    done, failed, total = (shown.get(key) for key in ("done", "failed", "total"))
    most = total or shown.get("known") or 0
    bar = f'<progress max="{int(most)}" value="{int(done or 0) + int(failed or 0)}"></progress>' if most else ""
    head = ["state", "done", "failed", "total", "name", "program"]
    row = [
        shown.get("state", ""),
        done,
        failed,
        "?" if total is None else total,
        shown.get("name"),
        shown.get("program"),
    ]
    return table(f"{kind} {shown.get('id', '')}", head, [["" if one is None else one for one in row]]) + bar


def plain(text: str) -> str:
    """Return a text that is shown as it is."""
    return f"<pre>{escape(text)}</pre>"
