"""What a run or a plan says about itself."""
