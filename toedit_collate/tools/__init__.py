"""What commands and recipes share."""
