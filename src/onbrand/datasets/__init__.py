"""What ships to try onbrand on: garments on and off people, product photos, virtual try-on."""
