package output

// ElasticsearchSetup says what SetupElasticsearch does besides templates.
type ElasticsearchSetup struct{}
