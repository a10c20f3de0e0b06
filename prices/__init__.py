"""What models and machines cost by list price, with the source and date of every price."""
