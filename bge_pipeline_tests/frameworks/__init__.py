"""Tables that frameworks made, migrated and used on through the frameworks themselves: `make test-frameworks`."""
