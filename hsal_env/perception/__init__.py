"""From pixels to activation volume and saliency map."""
