"""The measures themselves: what one is, what is made of others, and the laws. Knows forms."""
