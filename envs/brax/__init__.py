"""Tasks on brax's locomotion environments."""
