"""What the Snakefile needs; the standard library and what every Snakemake brings."""
