(ns clojars.web-test
  (:require [clojars.store :as store]
            [clojars.support :refer [put! with-store]]
            [clojars.version :as version]
            [clojars.web :as web]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is]]))

(defn- text-of [body]
  (if (string? body) body (slurp body)))

(defn- ask
  ([store uri] (ask store uri nil {}))
  ([store uri query] (ask store uri query {}))
  ([store uri query more]
   (let [site (merge {:store store, :version (version/version), :release "source", :role "primary"
                      :takes-uploads? (constantly true)}
                     more)
         answer ((web/handler site) {:request-method :get, :uri uri, :query-string query, :headers {}})]
     (cond-> answer (:body answer) (update :body text-of)))))

(deftest the-project-has-a-version
  (is (re-find #"^[0-9]+\.[0-9]+\.[0-9]+" (version/version)))
  (is (= "source" (version/release))))

(deftest the-front-page-says-who-this-is
  (with-store [store]
    (put! store ["a.jar"] "a")
    (let [{:keys [status body]} (ask store "/")]
      (is (= 200 status))
      (is (str/includes? body (str "<dd id=\"version\">" (version/version) "</dd>")))
      (is (str/includes? body "<dd id=\"role\">primary</dd>"))
      (is (str/includes? body "<dd id=\"files\">1</dd>")))))

(deftest health-is-that-of-uploads-too
  (with-store [store]
    (is (= {:status 200 :body (str (version/version) "\n")}
           (select-keys (ask store "/health") [:status :body])))
    (is (= 503 (:status (ask store "/health" nil {:takes-uploads? (constantly false)}))))))

(deftest the-version-is-told
  (with-store [store]
    (is (= (str (version/version) "\n") (:body (ask store "/version"))))))

(deftest files-are-found-by-words
  (with-store [store]
    (run! #(put! store [%] "x") ["ring-core-1.8.2.jar" "ring-codec-1.2.0.jar" "hiccup-1.0.5.jar"])
    (let [{:keys [body]} (ask store "/search" "q=RING+1.8")]
      (is (str/includes? body "<p id=\"found\">1</p>"))
      (is (str/includes? body "<a href=\"/repo/ring-core-1.8.2.jar\">")))))

(deftest what-was-searched-for-is-shown-as-text
  (with-store [store]
    (is (not (str/includes? (:body (ask store "/search" "q=%3Cscript%3E")) "<script>")))))

(deftest files-are-served
  (with-store [store]
    (store/make-directory! store ["org"])
    (put! store ["org" "a.jar"] "content")
    (is (= "content" (:body (ask store "/repo/org/a.jar"))))
    (is (str/includes? (:body (ask store "/repo/")) "<a href=\"org/\">"))
    (is (= 302 (:status (ask store "/repo/org"))))))

(deftest only-files-of-the-repository-are-served
  (with-store [store]
    (spit (io/file (:root store) ".incoming" "part") "half")
    (doseq [uri ["/repo/.incoming/part" "/repo/../secret" "/repo/%2e%2e/secret" "/repo/nothing" "/nothing"]]
      (is (= 404 (:status (ask store uri))) uri))))
