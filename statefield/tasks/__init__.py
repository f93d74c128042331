"""What people do with the backbones: a folder for each field, and `common` for what the fields share."""
