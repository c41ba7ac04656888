"""What can be hung onto one module, and is found again in its copies: replaced methods, and the account of holds."""
