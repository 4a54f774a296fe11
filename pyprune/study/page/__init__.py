"""Pages of HTML that stand alone: the comparison's, and the parts that other reports make theirs of."""

from pyprune.study.page.comparison import machine_cells, model_cells, page, task_cells
from pyprune.study.page.document import html_page, html_table, inline_figure

__all__ = ["html_page", "html_table", "inline_figure", "machine_cells", "model_cells", "page", "task_cells"]
