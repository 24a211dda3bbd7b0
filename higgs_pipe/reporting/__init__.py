"""Parts of the report: data, comparisons and charts."""
