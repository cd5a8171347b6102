"""What every command says and how it ends: sentences, tables, pictures, files written whole."""

from .errors import UserError, exit_status, user_errors
from .files import whole, whole_folder, write_json, write_text
from .flags import Parser
from .table import table

__all__ = [
    "Parser",
    "UserError",
    "exit_status",
    "table",
    "user_errors",
    "whole",
    "whole_folder",
    "write_json",
    "write_text",
]
