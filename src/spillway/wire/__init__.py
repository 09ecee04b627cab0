"""What crosses a process or a disk: msgspec structs, versioned and strict."""
