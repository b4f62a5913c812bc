"""What all parties know and repeat: roster, plan, graph."""
