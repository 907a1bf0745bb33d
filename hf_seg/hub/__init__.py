"""What of a run goes to the Hugging Face Hub, and how."""
