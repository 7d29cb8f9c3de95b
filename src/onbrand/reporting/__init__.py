"""From folders of results to figures and one page that anybody can read."""
