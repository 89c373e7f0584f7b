"""Read-only database queries; they work while the boss is down."""
