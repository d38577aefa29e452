//! The node's configuration file: its types, its schema, its errors with line and column.
