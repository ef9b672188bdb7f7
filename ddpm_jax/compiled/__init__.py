"""What compilers say of our programs, for devices that need not be here."""
