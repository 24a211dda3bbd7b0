"""The manifests: rows of any format, read and checked one by one."""
