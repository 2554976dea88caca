"""Shared by every stage; imports nothing from the rest of the package."""
