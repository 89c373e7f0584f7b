"""Read-only questions to the database; they work while the boss is down."""
