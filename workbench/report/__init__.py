"""What a run says, for people: a page, a table in the terminal, a card in a notebook. Computes nothing about models."""

from workbench.report.cards import Card, card
from workbench.report.page import page
from workbench.report.table import compare, print_table, summary

__all__ = ["Card", "card", "compare", "page", "print_table", "summary"]
