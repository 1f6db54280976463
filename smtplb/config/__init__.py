"""Configuration: one YAML file becomes `smtplb.settings.Settings`, or all its mistakes at once.

In reading order: load (YAML, the only importer of yaml) -> include -> tree -> checker and section (reading
with collected mistakes) -> schema (the keys) -> document (networks, pools, back_tls, groups, routes, targets,
listeners, front_tls, listener_rules, relay_guard: the rules between keys). Readers of single values: scalars,
addresses, networks, conditions, replies, substitute, files, pem.

Other packages use `load.load`, `load.load_text`, `errors.ConfigErrors`; nothing else.
"""
