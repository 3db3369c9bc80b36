"""SOMA's value filters: put together, and looked at before anything is read.

The language is SOMA's own: comparisons of a column with a constant, ``in`` lists, ``and``, ``or``. It is parsed, never
evaluated; what is not of this language is refused by SOMA.
"""

from __future__ import annotations

import ast

from prefect_cytotable.tasks.core.errors import ArgumentError, nearest
from prefect_cytotable.tasks.core.soma.model import TISSUE


def combined(value_filter: str, tissue: str) -> str:
    """One expression for a filter and a tissue.

    >>> combined("nnz > 5 or nnz == 0", "lung")
    "(nnz > 5 or nnz == 0) and tissue_general == 'lung'"
    """
    parts = [f"({value_filter})" if tissue else value_filter] if value_filter else []
    return " and ".join(parts + ([f"{TISSUE} == {tissue!r}"] if tissue else []))


def with_ids(value_filter: str, first: int, last: int, joinid: str) -> str:
    """The filter, for the rows of a range of joinids alone.

    >>> with_ids("nnz > 5", 0, 9, "soma_joinid")
    '(nnz > 5) and soma_joinid >= 0 and soma_joinid <= 9'
    """
    return f"({value_filter}) and " * bool(value_filter) + f"{joinid} >= {first} and {joinid} <= {last}"


def columns_of(value_filter: str) -> tuple[str, ...]:
    """The columns that a filter names.

    >>> columns_of("tissue == 'lung' and attr('a b') > val(3) and nnz in [1, 2]")
    ('tissue', 'nnz', 'a b')

    Raises:
        ArgumentError: It is no expression.
    """
    try:
        tree = ast.parse(value_filter, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArgumentError(
            f"value_filter is {value_filter!r}, which is no expression. One looks like \"cell_type == 'B cell' and "
            f"nnz > 500\" or \"sex in ['female', 'male']\"."
        ) from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attr":
            names += [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return tuple(dict.fromkeys(names))


def texts_of(value_filter: str) -> tuple[tuple[str, str], ...]:
    """The columns that a filter compares with texts, and these.

    >>> texts_of("tissue == 'lung' and cell_type in ['B cell', 'T cell'] and nnz > 3")
    (('tissue', 'lung'), ('cell_type', 'B cell'), ('cell_type', 'T cell'))
    """
    found = []
    for node in ast.walk(ast.parse(value_filter, mode="eval")):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name):
            for one in node.comparators:
                values = one.elts if isinstance(one, ast.List | ast.Tuple | ast.Set) else [one]
                texts = [value.value for value in values if isinstance(value, ast.Constant)]
                found += [(node.left.id, text) for text in texts if isinstance(text, str)]
    return tuple(found)


def check_columns(argument: str, wanted: tuple[str, ...], known: tuple[str, ...], where: str) -> None:
    """Refuse names that the table does not have.

    Raises:
        ArgumentError: With the nearest name.
    """
    for name in wanted:
        if name not in known:
            raise ArgumentError(f"{argument} names {name!r}, which {where} does not have. {nearest(name, known)}")
