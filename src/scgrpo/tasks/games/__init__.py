"""Small games of many turns that need no download: frozen lake, number guessing, and generated text adventures."""
