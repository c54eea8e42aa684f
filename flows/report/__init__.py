"""Results over seeds: the tables that tools read, and the page that people read. No torch here."""
