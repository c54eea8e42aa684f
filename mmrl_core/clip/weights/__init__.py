"""Where a CLIP's weights come from, and what has to be known of them before they are used."""
