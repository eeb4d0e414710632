"""Laws of growproof's own grower: of its table, its algebra, its refusals, the article."""
