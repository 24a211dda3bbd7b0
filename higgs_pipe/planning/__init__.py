"""Planning of the workflow, for the Snakefile and its rules.

Imports only the standard library and what every Snakemake installation brings, so that an
environment that holds Snakemake and nothing else can plan the workflow.
"""
