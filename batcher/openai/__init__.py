"""The API's words: fields, bodies and answers."""
