"""What goes in and out of the package: pictures, weights, configurations."""
