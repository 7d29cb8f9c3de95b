"""From folders of results to figures and one page anybody can read."""
