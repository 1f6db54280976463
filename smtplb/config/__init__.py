"""Configuration: one YAML file becomes `smtplb.settings.Settings`, or all its mistakes at once.

In reading order: load (YAML, the only importer of yaml) -> include -> tree -> checker and section (reading
with collected mistakes) -> schema (the keys) -> document (networks, pools, groups, listeners, relay_guard:
the rules between keys). Readers of single values: scalars, addresses, networks, conditions, substitute,
files.

Other packages use `load.load`, `load.load_text`, `errors.ConfigErrors`; nothing else.
"""
