"""Backends that fail inside a transaction: what clients hear, what becomes of each message, who is taken out."""
