"""What an audit leaves behind."""
