"""What every command says and how it ends: sentences, tables, pictures, files written whole."""

from .credentials import log_without_credentials, without_credentials
from .errors import UserError, exit_status, noted, user_errors
from .files import disk_errors, remove, whole, whole_folder, write_json, write_text
from .flags import Keywords, Parser, output_file
from .table import table

__all__ = [
    "Keywords",
    "Parser",
    "UserError",
    "disk_errors",
    "exit_status",
    "log_without_credentials",
    "noted",
    "output_file",
    "remove",
    "table",
    "user_errors",
    "whole",
    "whole_folder",
    "without_credentials",
    "write_json",
    "write_text",
]
