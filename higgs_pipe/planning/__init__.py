"""Planning of the workflow, for the Snakefile and its rules.

Imports only the standard library and packages that every Snakemake installation has, so that an
environment with nothing but Snakemake can plan the workflow.
"""
