"""Parts of the report page: what it reads, what it compares, what it draws."""
